// A set of integer points in few bits: packed keys and the hash table that numbers them.
#pragma once

#include <cstdint>
#include <vector>

#include "core/checks.h"
#include "cpu/vec.h"

namespace deepcrf::cpu::DEEPCRF_ISA {

// Integer coordinates in known ranges, each in a field of its own of one or more 64-bit words.
// Fields never overflow, so moving a point is an addition a word.
class KeyLayout {
 public:
  // Coordinate i lies in low[i]..high[i].
  KeyLayout(const std::vector<int64_t>& low, const std::vector<int64_t>& high) : low_(low) {
    int used = 64;
    for (size_t i = 0; i < low.size(); ++i) {
      int bits = 1;
      while (bits < 63 && ((high[i] - low[i]) >> bits) != 0) ++bits;
      if (used + bits > 64) {
        ++words_;
        used = 0;
      }
      word_.push_back(words_ - 1);
      shift_.push_back(used);
      used += bits;
    }
  }

  int words() const { return words_; }

  // Adds the field of a coordinate to each of some keys that start as zeros.
  template <int Count>
  void add_all(const int32_t* coordinates,  // [Count]
               size_t i,
               uint64_t* keys) const {  // [words, Count]
    const int64_t low = low_[i];
    const int shift = shift_[i];
    uint64_t* fields = keys + word_[i] * Count;
    for (int k = 0; k < Count; ++k) {
      fields[k] += static_cast<uint64_t>(coordinates[k] - low) << shift;
    }
  }

  // Adds a step along a coordinate.
  void add_step(int64_t step, size_t i, uint64_t* key) const {
    key[word_[i]] += static_cast<uint64_t>(step) << shift_[i];
  }

 private:
  int words_ = 0;
  std::vector<int64_t> low_;
  std::vector<int> word_;
  std::vector<int> shift_;
};

// Numbers distinct keys 0, 1, ... in the order they come. Open addressing, at most half full.
// Words is the number of words of a key, or 0 where only the constructor's argument says it.
template <int Words>
class KeyTable {
 public:
  explicit KeyTable(int words, int log2_slots = 10) : words_(words) { resize(log2_slots); }

  int64_t size() const { return size_; }
  const uint64_t* key(int64_t id) const { return keys_.data() + id * words(); }
  int words() const { return Words > 0 ? Words : words_; }

  int32_t find_or_insert(const uint64_t* key) {
    const size_t slot = probe(key);
    if (slots_[slot] != 0) return slots_[slot] - 1;
    const int32_t id = static_cast<int32_t>(size_++);
    keys_.insert(keys_.end(), key, key + words());
    slots_[slot] = id + 1;
    if (2 * size_ > static_cast<int64_t>(slots_.size())) resize(log2_slots_ + 1);
    return id;
  }

  // -1 where the key is not in the table.
  int32_t find(const uint64_t* key) const { return slots_[probe(key)] - 1; }

 private:
  size_t probe(const uint64_t* key) const {
    uint64_t hash = 0;
    for (int w = 0; w < words(); ++w) hash = (hash ^ key[w]) * 0x9E3779B97F4A7C15u;
    size_t slot = hash >> (64 - log2_slots_);
    while (slots_[slot] != 0 && !equal(this->key(slots_[slot] - 1), key)) {
      slot = (slot + 1) & (slots_.size() - 1);
    }
    return slot;
  }

  bool equal(const uint64_t* a, const uint64_t* b) const {
    for (int w = 0; w < words(); ++w) {
      if (a[w] != b[w]) return false;
    }
    return true;
  }

  void resize(int log2_slots) {
    log2_slots_ = log2_slots;
    slots_.assign(size_t{1} << log2_slots, 0);
    for (int64_t id = 0; id < size_; ++id) slots_[probe(key(id))] = static_cast<int32_t>(id + 1);
  }

  int words_;
  int log2_slots_ = 0;
  int64_t size_ = 0;
  std::vector<uint64_t> keys_;
  std::vector<int32_t> slots_;  // 1 + number of the key, 0 where free
};

}  // namespace deepcrf::cpu::DEEPCRF_ISA
