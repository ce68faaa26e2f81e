// Checks of every access that a kernel makes: inside of shared memory or of a registered tensor, no
// read of shared memory that the block has not written, no two threads at one place without a
// barrier between.
#include <link.h>

#include <algorithm>
#include <cstring>
#include <memory>
#include <stdexcept>

#include "shadow.h"
#include "state.h"

namespace deepcrf::cuda {
// The extern array of csrc/cuda/launch.cuh.
alignas(128) thread_local unsigned char dynamic_shared_bytes[cuda_on_host::kMaxSharedBytes];
}  // namespace deepcrf::cuda

namespace cuda_on_host {

namespace {

using deepcrf::cuda::dynamic_shared_bytes;

struct Range {
  std::uintptr_t begin = 0;
  std::uintptr_t end = 0;
  bool holds(std::uintptr_t address) const { return address - begin < end - begin; }
};

struct GlobalArea {
  Range range;
  std::string label;
  Shadow shadow;
};

// The epochs of a block of this launch, and the last one in which it executed __threadfence.
struct BlockEpochs {
  std::uint32_t first;
  std::uint32_t released;
};

Range image;      // code and data of this module
Range arguments;  // of the kernel
Range shared;     // all __shared__ variables, static and dynamic
std::unique_ptr<Shadow> shared_shadow;
std::vector<GlobalArea> areas;  // sorted
GlobalArea* last_area = nullptr;
std::vector<BlockEpochs> blocks;

std::uintptr_t number(const void* pointer) { return reinterpret_cast<std::uintptr_t>(pointer); }

// Finds the image of this module and its thread-local segment in the calling thread.
int find_module(dl_phdr_info* info, std::size_t, void*) {
  Range module;
  module.begin = ~std::uintptr_t{0};
  std::size_t thread_local_bytes = 0;
  for (int i = 0; i < info->dlpi_phnum; ++i) {
    const auto& header = info->dlpi_phdr[i];
    const std::uintptr_t begin = info->dlpi_addr + header.p_vaddr;
    if (header.p_type == PT_LOAD) {
      module.begin = std::min(module.begin, begin);
      module.end = std::max(module.end, begin + header.p_memsz);
    }
    if (header.p_type == PT_TLS) thread_local_bytes = header.p_memsz;
  }
  if (!module.holds(number(reinterpret_cast<const void*>(&find_module)))) return 0;
  image = module;
  const Range found = {number(info->dlpi_tls_data),
                       number(info->dlpi_tls_data) + thread_local_bytes};
  if (shared_shadow == nullptr || found.begin != shared.begin) {
    shared = found;
    shared_shadow = std::make_unique<Shadow>(found.begin, thread_local_bytes);
  }
  return 1;
}

const char* verb(Access access) {
  return access == Access::read ? "read" : access == Access::write ? "write" : "atomic";
}

std::string describe(std::uintptr_t address) {
  if (shared.holds(address)) {
    const std::uintptr_t offset = address - number(dynamic_shared_bytes);
    if (offset < kMaxSharedBytes) return "dynamic shared memory, byte " + std::to_string(offset);
    return "static shared memory";
  }
  std::string text = "no known memory";
  std::uintptr_t nearest = 1 << 20;
  for (const GlobalArea& area : areas) {
    if (area.range.holds(address))
      return area.label + ", byte " + std::to_string(address - area.range.begin);
    const bool after = address >= area.range.end;
    const std::uintptr_t distance = after ? address - area.range.end : area.range.begin - address;
    if (distance >= nearest) continue;
    nearest = distance;
    text = std::to_string(distance) + " bytes " + (after ? "past the end of " : "before ") +
           area.label;
  }
  return text;
}

[[noreturn]] void report(const char* what, Access access, std::uintptr_t address, std::size_t bytes,
                         const void* code, const std::string& detail) {
  fail(std::string(what) + ": " + verb(access) + " of " + std::to_string(bytes) + " bytes at " +
       describe(address) + detail + ", in " + code_name(code));
}

std::string stamp_name(const Stamp& stamp, const char* what) {
  const std::string who =
      stamp.epoch < machine.block_start ? "another block" : thread_name(stamp.thread);
  return std::string(", ") + what + " by " + who + " without a barrier between";
}

// Whether the running thread may rely on having seen `stamp`.
bool ordered_after(const Stamp& stamp, const Thread& thread) {
  if (stamp.epoch < machine.launch_start) return true;
  if (stamp.epoch < machine.block_start) {
    if (!thread.used_atomic) return false;
    const auto next = std::upper_bound(
        blocks.begin(), blocks.end(), stamp.epoch,
        [](std::uint32_t epoch, const BlockEpochs& block) { return epoch < block.first; });
    return std::prev(next)->released >= stamp.epoch;
  }
  if (stamp.epoch < machine.epoch || stamp.thread == thread.number) return true;
  const unsigned warp = thread.number / kWarpSize;
  if (stamp.thread / kWarpSize != warp) return false;
  return machine.warps[warp].clock[thread.number % kWarpSize][stamp.thread % kWarpSize] >=
         stamp.clock;
}

struct Request {
  std::uintptr_t address;
  std::size_t bytes;
  Access access;
  const void* code;
  Stamp now;
};

void check_cell(Cell& cell, const Request& request, const Thread& thread, bool is_shared) {
  const auto report_race = [&](const Stamp& stamp, const char* what) {
    report("race", request.access, request.address, request.bytes, request.code,
           stamp_name(stamp, what));
  };
  if (request.access == Access::read) {
    if (is_shared && cell.write.epoch < machine.block_start) {
      report("nothing written yet", request.access, request.address, request.bytes, request.code,
             "");
    }
    if (cell.write.copying) {
      report("asynchronous copy under way", request.access, request.address, request.bytes,
             request.code, "");
    }
    if (!ordered_after(cell.write, thread)) report_race(cell.write, "written");
    if (cell.read.thread != request.now.thread || cell.read.epoch < machine.block_start) {
      cell.other_read = cell.read;
    }
    cell.read = request.now;
    return;
  }
  const bool both_atomic = request.access == Access::atomic && cell.write.atomic;
  // Shared memory is another memory in every block.
  const std::uint32_t oldest = is_shared ? machine.block_start : machine.launch_start;
  if (!both_atomic && cell.write.epoch >= oldest && !ordered_after(cell.write, thread)) {
    report_race(cell.write, "written");
  }
  for (const Stamp* read : {&cell.read, &cell.other_read}) {
    if (read->epoch >= oldest && !ordered_after(*read, thread)) report_race(*read, "read");
  }
  if (is_shared && request.access == Access::atomic && cell.write.epoch < machine.block_start) {
    report("nothing written yet", request.access, request.address, request.bytes, request.code, "");
  }
  cell.write = request.now;
  cell.read = {};
  cell.other_read = {};
}

Stamp stamp_of(const Thread& thread) {
  const unsigned lane = thread.number % kWarpSize;
  Stamp stamp = {};
  stamp.epoch = machine.epoch;
  stamp.thread = thread.number;
  stamp.clock = machine.warps[thread.number / kWarpSize].clock[lane][lane];
  return stamp;
}

GlobalArea* find_area(std::uintptr_t address) {
  if (last_area != nullptr && last_area->range.holds(address)) return last_area;
  const auto next = std::upper_bound(
      areas.begin(), areas.end(), address,
      [](std::uintptr_t value, const GlobalArea& area) { return value < area.range.begin; });
  if (next == areas.begin() || !std::prev(next)->range.holds(address)) return nullptr;
  last_area = &*std::prev(next);
  return last_area;
}

}  // namespace

void check_access_from(const void* code, const void* pointer, std::size_t bytes, Access access,
                       bool copying = false) {
  if (Fiber::on_stack(number(pointer))) return;
  if (access == Access::read &&
      (image.holds(number(pointer)) || arguments.holds(number(pointer)))) {
    return;
  }
  Thread& thread = *machine.current;
  Request request = {number(pointer), bytes, access, code, stamp_of(thread)};
  request.now.atomic = access == Access::atomic;
  request.now.copying = copying;
  const std::uintptr_t end = request.address + bytes;
  const bool replaces = access != Access::read;
  if (access == Access::atomic) thread.used_atomic = true;

  if (shared.holds(request.address)) {
    const std::uintptr_t dynamic_begin = number(dynamic_shared_bytes);
    const Range dynamic = {dynamic_begin, dynamic_begin + kMaxSharedBytes};
    if (dynamic.holds(request.address) && end > dynamic_begin + machine.shape.shared_bytes) {
      report("out of bounds", access, request.address, bytes, code,
             " of " + std::to_string(machine.shape.shared_bytes) + " at launch");
    }
    shared_shadow->visit(request.address, end, replaces,
                         [&](Cell& cell) { check_cell(cell, request, thread, true); });
    return;
  }
  if (GlobalArea* area = find_area(request.address)) {
    if (!thread.waited) {
      report("former kernels may still run", access, request.address, bytes, code, "");
    }
    if (end > area->range.end) report("out of bounds", access, request.address, bytes, code, "");
    area->shadow.visit(request.address, end, replaces,
                       [&](Cell& cell) { check_cell(cell, request, thread, false); });
    return;
  }
  report("out of bounds", access, request.address, bytes, code, "");
}

void check_access(const void* address, std::size_t bytes, Access access) {
  if (machine.current != nullptr)
    check_access_from(__builtin_return_address(0), address, bytes, access);
}

void check_global(const void* address, std::size_t bytes) {
  const GlobalArea* area = find_area(number(address));
  if (bytes > 0 && (area == nullptr || number(address) + bytes > area->range.end)) {
    throw std::runtime_error("out of bounds: " + std::to_string(bytes) + " bytes at " +
                             describe(number(address)));
  }
}

void wait_for_former_kernels() { machine.current->waited = true; }

void release_to_other_blocks() { blocks.back().released = machine.epoch; }

void begin_launch(const void* own_arguments, std::size_t argument_bytes) {
  dynamic_shared_bytes[0] = 0;  // makes the segment exist in this thread
  dl_iterate_phdr(&find_module, nullptr);
  arguments = {number(own_arguments), number(own_arguments) + argument_bytes};
  blocks.clear();
}

void begin_block() { blocks.push_back({machine.block_start, 0}); }

void set_global_memory(std::vector<Area> given) {
  std::sort(given.begin(), given.end(),
            [](const Area& a, const Area& b) { return a.begin < b.begin; });
  last_area = nullptr;
  areas.clear();
  for (std::size_t i = 0; i < given.size();) {
    Range range = {given[i].begin, given[i].begin + given[i].bytes};
    std::string label = given[i].label;
    for (++i; i < given.size() && given[i].begin < range.end; ++i) {
      range.end = std::max(range.end, given[i].begin + given[i].bytes);
      label += " and " + given[i].label;
    }
    areas.push_back({range, label, Shadow(range.begin, range.end - range.begin)});
  }
}

// ---- Asynchronous copies: the bytes arrive as late as the program allows, when it waits for them
// ----

void async_copy(void* to, const void* from, int bytes, int valid_bytes) {
  Thread& thread = *machine.current;
  const void* code = __builtin_return_address(0);
  if (!shared.holds(number(to)))
    fail("asynchronous copy to other than shared memory, in " + code_name(code));
  if (number(to) % bytes != 0 || number(from) % bytes != 0) {
    fail("misaligned asynchronous copy of " + std::to_string(bytes) + " bytes, in " +
         code_name(code));
  }
  if (valid_bytes > 0) check_access_from(code, from, valid_bytes, Access::read);
  check_access_from(code, to, bytes, Access::write, true);
  thread.open_copies.push_back(
      {static_cast<char*>(to), static_cast<const char*>(from), bytes, valid_bytes});
}

void async_commit() {
  Thread& thread = *machine.current;
  thread.groups.push_back(std::move(thread.open_copies));
  thread.open_copies.clear();
}

void finish_async_copies(Thread& thread, std::size_t groups_left) {
  while (thread.groups.size() > groups_left) {
    for (const AsyncCopy& copy : thread.groups.front()) {
      check_access_from(__builtin_return_address(0), copy.shared, copy.bytes, Access::write);
      std::memset(copy.shared, 0, copy.bytes);
      std::memcpy(copy.shared, copy.global, copy.valid_bytes);
    }
    thread.groups.erase(thread.groups.begin());
  }
}

void async_wait(int groups_left) { finish_async_copies(*machine.current, groups_left); }

}  // namespace cuda_on_host

// ---- Hooks: -fsanitize=thread calls them for every access, this runtime takes the place of
// libtsan ----

#define CUDA_ON_HOST_HOOK(name, size, access)                                   \
  extern "C" void name(void* address) {                                         \
    if (cuda_on_host::machine.current == nullptr) return;                       \
    cuda_on_host::check_access_from(__builtin_return_address(0), address, size, \
                                    cuda_on_host::Access::access);              \
  }
#define CUDA_ON_HOST_HOOKS(size)                   \
  CUDA_ON_HOST_HOOK(__tsan_read##size, size, read) \
  CUDA_ON_HOST_HOOK(__tsan_write##size, size, write)
CUDA_ON_HOST_HOOKS(1)
CUDA_ON_HOST_HOOKS(2)
CUDA_ON_HOST_HOOKS(4)
CUDA_ON_HOST_HOOKS(8)
CUDA_ON_HOST_HOOKS(16)
CUDA_ON_HOST_HOOK(__tsan_unaligned_read2, 2, read)
CUDA_ON_HOST_HOOK(__tsan_unaligned_read4, 4, read)
CUDA_ON_HOST_HOOK(__tsan_unaligned_read8, 8, read)
CUDA_ON_HOST_HOOK(__tsan_unaligned_read16, 16, read)
CUDA_ON_HOST_HOOK(__tsan_unaligned_write2, 2, write)
CUDA_ON_HOST_HOOK(__tsan_unaligned_write4, 4, write)
CUDA_ON_HOST_HOOK(__tsan_unaligned_write8, 8, write)
CUDA_ON_HOST_HOOK(__tsan_unaligned_write16, 16, write)
extern "C" void __tsan_read_range(void* address, unsigned long bytes) {
  if (cuda_on_host::machine.current == nullptr) return;
  cuda_on_host::check_access_from(__builtin_return_address(0), address, bytes,
                                  cuda_on_host::Access::read);
}
extern "C" void __tsan_write_range(void* address, unsigned long bytes) {
  if (cuda_on_host::machine.current == nullptr) return;
  cuda_on_host::check_access_from(__builtin_return_address(0), address, bytes,
                                  cuda_on_host::Access::write);
}
extern "C" void __tsan_init() {}
extern "C" void __tsan_func_entry(void*) {}
extern "C" void __tsan_func_exit() {}
extern "C" void __tsan_vptr_update(void**, void*) {}
extern "C" void __tsan_vptr_read(void**) {}
