// What is remembered about memory: who wrote and who read each part of it, and when.
#pragma once

#include <sys/mman.h>

#include <cstdint>
#include <new>

namespace cuda_on_host {

// One access. Epoch 0 means never.
struct Stamp {
  std::uint32_t epoch;
  std::uint32_t thread : 10;
  std::uint32_t clock : 20;  // of the lane, within the epoch's block
  std::uint32_t atomic : 1;
  std::uint32_t copying : 1;  // an asynchronous copy is under way
};

// Of 4 bytes, or of one byte of a word whose parts were accessed apart. Two readers are kept, of
// different threads.
struct Cell {
  Stamp write;
  Stamp read;
  Stamp other_read;
};

// The cells of one memory area; untouched ones cost no memory.
class Shadow {
 public:
  static constexpr std::uintptr_t kWordBytes = 4;

  Shadow(std::uintptr_t begin, std::size_t bytes)
      : first_word_(begin / kWordBytes),
        words_((begin + bytes + kWordBytes - 1) / kWordBytes - first_word_) {
    whole_ = static_cast<Cell*>(map(words_ * sizeof(Cell)));
    parts_ = static_cast<Cell*>(map(words_ * kWordBytes * sizeof(Cell)));
    apart_ = static_cast<bool*>(map(words_));
  }
  ~Shadow() {
    unmap(whole_, words_ * sizeof(Cell));
    unmap(parts_, words_ * kWordBytes * sizeof(Cell));
    unmap(apart_, words_);
  }
  Shadow(Shadow&& other) noexcept
      : first_word_(other.first_word_),
        words_(other.words_),
        whole_(other.whole_),
        parts_(other.parts_),
        apart_(other.apart_) {
    other.words_ = 0;
  }
  Shadow& operator=(Shadow&&) = delete;

  // Calls update(cell) for every cell that the bytes [begin, end) touch. `replaces` says that the
  // update overwrites all that a cell holds.
  template <class Update>
  void visit(std::uintptr_t begin, std::uintptr_t end, bool replaces, Update&& update) {
    for (std::uintptr_t word = begin / kWordBytes; word * kWordBytes < end; ++word) {
      const std::uintptr_t start = word * kWordBytes;
      const std::size_t index = word - first_word_;
      const bool all = begin <= start && start + kWordBytes <= end;
      if (all && !apart_[index]) {
        update(whole_[index]);
        continue;
      }
      Cell* parts = parts_ + index * kWordBytes;
      if (!apart_[index]) {
        for (unsigned byte = 0; byte < kWordBytes; ++byte) parts[byte] = whole_[index];
        apart_[index] = true;
      }
      const std::uintptr_t from = begin > start ? begin - start : 0;
      const std::uintptr_t to = end < start + kWordBytes ? end - start : kWordBytes;
      for (std::uintptr_t byte = from; byte < to; ++byte) update(parts[byte]);
      if (all && replaces) {
        whole_[index] = parts[0];
        apart_[index] = false;
      }
    }
  }

 private:
  static void* map(std::size_t bytes) {
    if (bytes == 0) return nullptr;
    void* memory = mmap(nullptr, bytes, PROT_READ | PROT_WRITE,
                        MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (memory == MAP_FAILED) throw std::bad_alloc();
    return memory;
  }
  static void unmap(void* memory, std::size_t bytes) {
    if (bytes != 0) munmap(memory, bytes);
  }

  std::uintptr_t first_word_;
  std::size_t words_;
  Cell* whole_;
  Cell* parts_;
  bool* apart_;
};

}  // namespace cuda_on_host
