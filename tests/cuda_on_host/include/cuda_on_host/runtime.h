// What the CUDA headers of the shim need from its runtime: the running thread, rendezvous, memory
// checks, launches.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <vector>

namespace cuda_on_host {

// Where a kernel waits, as the default argument of every synchronising function.
struct Site {
  const char* file;
  int line;
  static constexpr Site here(const char* file = __builtin_FILE(), int line = __builtin_LINE()) {
    return {file, line};
  }
};

struct Index3 {
  unsigned x, y, z;
};

struct LaunchShape {
  Index3 grid;
  Index3 block;
  std::size_t shared_bytes;
  bool early;  // former kernels may still run
};

enum class Access { read, write, atomic };

constexpr unsigned kWarpSize = 32;
constexpr unsigned kAllLanes = 0xffffffffu;
constexpr std::size_t kDefaultSharedBytes = 48 * 1024;
constexpr std::size_t kMaxSharedBytes = 227 * 1024;
constexpr std::size_t kMaxParameterBytes = 4096;  // of a kernel, on every device

// Stops the running kernel with an error that names kernel, block and thread. Works in any frame of
// a kernel thread: the thread is abandoned where it stands and the launch throws in the caller.
[[noreturn]] void fail(const std::string& message);

unsigned lane();

// __syncthreads and its reductions: waits for every thread of the block; returns the sum of
// `predicate`.
int block_barrier(const char* name, int predicate, Site site);

// One warp-wide operation. Every lane of `mask` brings a payload; the last one to arrive runs
// `resolve` on all of them (null for lanes out of the mask or past the end of the block).
using Resolve = void (*)(void* const* payloads);
void warp_rendezvous(const char* name, unsigned mask, void* payload, Resolve resolve, Site site);

// Orders the memory accesses of the lanes of `mask` (__syncwarp); other warp operations do not.
void warp_barrier(unsigned mask, Site site);

// Records and checks an access of the running thread to shared or global memory.
void check_access(const void* address, std::size_t bytes, Access access);

// Throws unless the bytes lie in global memory that kernels may touch: for what the host starts.
void check_global(const void* address, std::size_t bytes);

// From here on the running thread may touch global memory, in a kernel that was launched early.
void wait_for_former_kernels();

// __threadfence: later atomics may publish the block's writes to other blocks.
void release_to_other_blocks();

void async_copy(void* shared, const void* global, int bytes, int valid_bytes);
void async_commit();
void async_wait(int groups_left);

using Entry = void (*)(void* arguments);
// Runs a whole grid; throws std::runtime_error with what the checks found.
void run_grid(const void* kernel, const LaunchShape& shape, Entry entry, void* arguments,
              std::size_t argument_bytes);

// Lets `kernel` use more than 48 KiB of dynamic shared memory; false if no device has that much.
bool allow_shared_bytes(const void* kernel, std::size_t bytes);
std::size_t allowed_shared_bytes(const void* kernel);

// --- for the test side
// -------------------------------------------------------------------------------

// The order in which blocks, warps and lanes run between barriers.
enum class Order { forward, reverse, shuffled };
void set_order(Order order, std::uint64_t seed);

// Global memory that kernels may touch; any other access is out of bounds. Forgets earlier areas.
struct Area {
  std::uintptr_t begin;
  std::size_t bytes;
  std::string label;
};
void set_global_memory(std::vector<Area> areas);

}  // namespace cuda_on_host
