// The state that the scheduler and the memory checks share: the running block and its threads.
#pragma once

#include <array>
#include <cstdint>
#include <string>
#include <vector>

#include "cuda_on_host/runtime.h"
#include "fiber.h"

namespace cuda_on_host {

enum class ThreadState { ready, at_barrier, in_warp, finished };

struct AsyncCopy {
  char* shared;
  const char* global;
  int bytes;
  int valid_bytes;
};

struct Thread {
  Fiber fiber;
  unsigned number;  // in the block, x fastest
  Index3 index;
  ThreadState state;
  const char* waits_in;  // name of the operation it waits in
  Site site;
  int predicate;
  unsigned mask;
  void* payload;
  Resolve resolve;
  bool orders_memory;
  bool waited;                                 // for former kernels
  bool used_atomic;                            // may read what other blocks released
  std::vector<AsyncCopy> open_copies;          // not committed yet
  std::vector<std::vector<AsyncCopy>> groups;  // committed, oldest first
};

struct WarpState {
  // Bits of lanes: within the block, waiting in a warp operation, exited.
  unsigned existing;
  unsigned waiting;
  unsigned finished;
  // clock[i][j]: the latest clock of lane j that lane i is ordered after; clock[i][i] is its own.
  std::array<std::array<std::uint32_t, kWarpSize>, kWarpSize> clock;
};

struct Machine {
  Thread* current = nullptr;  // null outside of kernels
  std::vector<Thread> threads;
  std::vector<WarpState> warps;
  LaunchShape shape;
  Index3 block;
  const void* kernel = nullptr;
  std::string failure;

  // Times between barriers are numbered across all blocks and launches.
  std::uint32_t epoch = 0;
  std::uint32_t launch_start = 0;
  std::uint32_t block_start = 0;
};
extern Machine machine;

// "thread (x,y,z)" of the running block.
std::string thread_name(unsigned number);

// Name of the code or the variable at an address, with file and line where known.
std::string code_name(const void* address);

// --- memory.cpp ---
void begin_launch(const void* arguments, std::size_t argument_bytes);
void begin_block();
void finish_async_copies(Thread& thread, std::size_t groups_left);

}  // namespace cuda_on_host
