// Blocks of a grid in sequence, threads of a block as fibers that switch only where they wait.
#include <algorithm>
#include <mutex>
#include <numeric>
#include <random>
#include <stdexcept>

#include "cuda_runtime.h"
#include "state.h"

uint3 threadIdx;
uint3 blockIdx;
dim3 blockDim;
dim3 gridDim;

namespace cuda_on_host {

Machine machine;

namespace {

std::mutex launch_mutex;
Order order = Order::forward;
std::mt19937_64 shuffler;

std::string triple(Index3 index) {
  return "(" + std::to_string(index.x) + "," + std::to_string(index.y) + "," +
         std::to_string(index.z) + ")";
}

Index3 unravel(unsigned long long number, Index3 shape) {
  return {static_cast<unsigned>(number % shape.x),
          static_cast<unsigned>(number / shape.x % shape.y),
          static_cast<unsigned>(number / shape.x / shape.y)};
}

unsigned long long volume(Index3 shape) {
  return static_cast<unsigned long long>(shape.x) * shape.y * shape.z;
}

template <class Number>
std::vector<Number> visiting_order(Number count) {
  std::vector<Number> numbers(count);
  std::iota(numbers.begin(), numbers.end(), Number{0});
  if (order == Order::reverse) std::reverse(numbers.begin(), numbers.end());
  if (order == Order::shuffled) std::shuffle(numbers.begin(), numbers.end(), shuffler);
  return numbers;
}

std::string hex(unsigned value) {
  char text[16];
  std::snprintf(text, sizeof(text), "%08x", value);
  return text;
}

std::string where(const Thread& thread) {
  std::string text = thread_name(thread.number);
  if (thread.state == ThreadState::finished) return text + " has exited";
  if (thread.state == ThreadState::ready) return text + " runs";
  return text + " waits in " + thread.waits_in + " at " + thread.site.file + ":" +
         std::to_string(thread.site.line);
}

// How many threads wait in a block barrier.
std::size_t at_barrier;

void wait(Thread& thread, ThreadState state, const char* name, Site site) {
  thread.state = state;
  thread.waits_in = name;
  thread.site = site;
}

bool same_site(const Thread& a, const Thread& b) {
  return a.waits_in == b.waits_in && a.site.line == b.site.line && a.site.file == b.site.file;
}

Thread* thread_of_warp(unsigned warp, unsigned lane) {
  const unsigned number = warp * kWarpSize + lane;
  return number < machine.threads.size() ? &machine.threads[number] : nullptr;
}

// Completes the operation that `thread` waits in, if all lanes of its mask are there. Hardware
// forgives a lane that exits early, if it is early enough; this does not.
void try_complete_warp(Thread& thread) {
  const unsigned warp = thread.number / kWarpSize;
  const WarpState& state = machine.warps[warp];
  const unsigned wanted = thread.mask & state.existing;  // the block may end within this warp
  if ((wanted & ~(state.waiting | state.finished)) != 0) return;
  void* payloads[kWarpSize] = {};
  for (unsigned lane = 0; lane < kWarpSize; ++lane) {
    if (!(wanted >> lane & 1)) continue;
    const Thread& other = *thread_of_warp(warp, lane);
    if (other.state == ThreadState::finished) {
      fail("lanes of one mask disagree: " + where(thread) + ", " + where(other));
    }
    if (!same_site(other, thread) || other.mask != thread.mask) {
      fail("lanes of one mask disagree: " + where(thread) + " with mask " + hex(thread.mask) +
           ", " + where(other) + " with mask " + hex(other.mask));
    }
    payloads[lane] = other.payload;
  }
  if (thread.resolve != nullptr) thread.resolve(payloads);
  if (thread.orders_memory) {
    auto& clock = machine.warps[warp].clock;
    std::array<std::uint32_t, kWarpSize> latest = {};
    for (unsigned lane = 0; lane < kWarpSize; ++lane) {
      if (payloads[lane] == nullptr) continue;
      for (unsigned i = 0; i < kWarpSize; ++i) latest[i] = std::max(latest[i], clock[lane][i]);
    }
    for (unsigned lane = 0; lane < kWarpSize; ++lane) {
      if (payloads[lane] == nullptr) continue;
      clock[lane] = latest;
      ++clock[lane][lane];
    }
  }
  machine.warps[warp].waiting &= ~wanted;
  for (unsigned lane = 0; lane < kWarpSize; ++lane) {
    if (payloads[lane] != nullptr) thread_of_warp(warp, lane)->state = ThreadState::ready;
  }
}

void enter_warp(const char* name, unsigned mask, void* payload, Resolve resolve, bool orders_memory,
                Site site) {
  Thread& thread = *machine.current;
  const unsigned own_lane = thread.number % kWarpSize;
  if (!(mask >> own_lane & 1)) {
    fail(std::string(name) + " at " + site.file + ":" + std::to_string(site.line) + ": the mask " +
         hex(mask) + " leaves out the calling lane " + std::to_string(own_lane));
  }
  wait(thread, ThreadState::in_warp, name, site);
  thread.mask = mask;
  thread.payload = payload;
  thread.resolve = resolve;
  thread.orders_memory = orders_memory;
  machine.warps[thread.number / kWarpSize].waiting |= 1u << own_lane;
  try_complete_warp(thread);
  if (thread.state == ThreadState::in_warp) thread.fiber.suspend();
}

int barrier_result;

void try_complete_barrier() {
  if (at_barrier < machine.threads.size()) return;
  const Thread& first = machine.threads.front();
  int sum = 0;
  for (const Thread& thread : machine.threads) {
    sum += thread.predicate;
  }
  for (const Thread& thread : machine.threads) {
    if (!same_site(thread, first)) {
      fail("threads of the block meet in different barriers: " + where(first) + ", " +
           where(thread));
    }
  }
  barrier_result = sum;
  at_barrier = 0;
  ++machine.epoch;
  for (Thread& thread : machine.threads) thread.state = ThreadState::ready;
}

[[noreturn]] void report_deadlock() {
  const Thread* waiting = nullptr;
  for (const Thread& thread : machine.threads) {
    if (thread.state == ThreadState::at_barrier && waiting == nullptr) waiting = &thread;
  }
  for (const Thread& thread : machine.threads) {
    if (waiting == nullptr && thread.state == ThreadState::in_warp) waiting = &thread;
  }
  std::string text = "threads wait for each other for ever: " + where(*waiting);
  for (const Thread& thread : machine.threads) {
    const bool missing = thread.state != waiting->state || !same_site(thread, *waiting);
    const bool in_reach = waiting->state == ThreadState::at_barrier ||
                          (thread.number / kWarpSize == waiting->number / kWarpSize &&
                           (waiting->mask >> thread.number % kWarpSize & 1));
    if (missing && in_reach) {
      text += ", but " + where(thread);
      break;
    }
  }
  fail(text);
}

Entry entry_of_grid;
void* arguments_of_grid;

void thread_body(void* raw) {
  Thread& thread = *static_cast<Thread*>(raw);
  entry_of_grid(arguments_of_grid);
  // The next kernel waits for this one alone, and so for those before it through this one.
  if (!thread.waited) fail("ended without having waited for former kernels");
  finish_async_copies(thread, 0);
  thread.state = ThreadState::finished;
  thread.fiber.suspend();
}

void resume(Thread& thread) {
  threadIdx = {thread.index.x, thread.index.y, thread.index.z};
  machine.current = &thread;
  thread.fiber.resume();
  machine.current = nullptr;
  if (!machine.failure.empty()) throw std::runtime_error(machine.failure);
}

// After a lane has exited, no other may wait for it.
void after_exit(unsigned warp) {
  for (unsigned lane = 0; lane < kWarpSize; ++lane) {
    Thread* thread = thread_of_warp(warp, lane);
    if (thread != nullptr && thread->state == ThreadState::in_warp) try_complete_warp(*thread);
  }
}

// Runs the lanes of a warp until none is ready; returns how many have exited.
unsigned run_warp(unsigned warp, const std::vector<unsigned>& lanes, bool& progress) {
  unsigned exited = 0;
  bool again = true;
  while (again) {
    again = false;
    for (const unsigned lane : lanes) {
      Thread* thread = thread_of_warp(warp, lane);
      if (thread == nullptr || thread->state != ThreadState::ready) continue;
      resume(*thread);
      again = progress = true;
      if (thread->state == ThreadState::finished) {
        ++exited;
        machine.warps[warp].finished |= 1u << lane;
        after_exit(warp);
      }
    }
  }
  return exited;
}

void run_block() {
  const unsigned count = static_cast<unsigned>(machine.threads.size());
  const unsigned warps = (count + kWarpSize - 1) / kWarpSize;
  ++machine.epoch;
  machine.block_start = machine.epoch;
  at_barrier = 0;
  for (unsigned number = 0; number < warps; ++number) {
    WarpState& warp = machine.warps[number];
    warp = {};
    const unsigned lanes = std::min(count - number * kWarpSize, kWarpSize);
    warp.existing = lanes == kWarpSize ? kAllLanes : (1u << lanes) - 1;
    for (unsigned lane = 0; lane < kWarpSize; ++lane) warp.clock[lane][lane] = 1;
  }
  for (unsigned number = 0; number < count; ++number) {
    Thread& thread = machine.threads[number];
    thread.number = number;
    thread.index = unravel(number, machine.shape.block);
    thread.state = ThreadState::ready;
    thread.waited = !machine.shape.early;
    thread.used_atomic = false;
    thread.open_copies.clear();
    thread.groups.clear();
    thread.fiber.prepare(number, &thread_body, &thread);
  }
  begin_block();

  const std::vector<unsigned> warp_order = visiting_order(warps);
  const std::vector<unsigned> lane_order = visiting_order(kWarpSize);
  unsigned running = count;
  while (running > 0) {
    bool progress = false;
    for (const unsigned warp : warp_order) {
      running -= run_warp(warp, lane_order, progress);
    }
    if (!progress) report_deadlock();
  }
}

}  // namespace

unsigned lane() { return machine.current->number % kWarpSize; }

std::string thread_name(unsigned number) {
  return "thread " + triple(unravel(number, machine.shape.block));
}

void fail(const std::string& message) {
  std::string text = "kernel " + code_name(machine.kernel) + ", block " + triple(machine.block);
  if (machine.current != nullptr) text += ", " + thread_name(machine.current->number);
  text += ": " + message;
  if (machine.current == nullptr) throw std::runtime_error(text);
  machine.failure = text;
  machine.current->fiber.suspend();
  __builtin_unreachable();
}

int block_barrier(const char* name, int predicate, Site site) {
  Thread& thread = *machine.current;
  wait(thread, ThreadState::at_barrier, name, site);
  thread.predicate = predicate;
  ++at_barrier;
  try_complete_barrier();
  if (thread.state == ThreadState::at_barrier) thread.fiber.suspend();
  return barrier_result;
}

void warp_rendezvous(const char* name, unsigned mask, void* payload, Resolve resolve, Site site) {
  enter_warp(name, mask, payload, resolve, false, site);
}

void warp_barrier(unsigned mask, Site site) {
  char present;
  enter_warp("__syncwarp", mask, &present, nullptr, true, site);
}

void set_order(Order new_order, std::uint64_t seed) {
  const std::lock_guard<std::mutex> lock(launch_mutex);
  order = new_order;
  shuffler.seed(seed);
}

void run_grid(const void* kernel, const LaunchShape& shape, Entry entry, void* arguments,
              std::size_t argument_bytes) {
  const std::lock_guard<std::mutex> lock(launch_mutex);
  machine.kernel = kernel;
  machine.shape = shape;
  machine.failure.clear();
  machine.threads.resize(volume(shape.block));
  machine.warps.resize((machine.threads.size() + kWarpSize - 1) / kWarpSize);
  machine.launch_start = machine.epoch + 1;
  blockDim = {shape.block.x, shape.block.y, shape.block.z};
  gridDim = {shape.grid.x, shape.grid.y, shape.grid.z};
  entry_of_grid = entry;
  arguments_of_grid = arguments;
  begin_launch(arguments, argument_bytes);
  for (const auto number : visiting_order(volume(shape.grid))) {
    machine.block = unravel(number, shape.grid);
    blockIdx = {machine.block.x, machine.block.y, machine.block.z};
    run_block();
  }
}

}  // namespace cuda_on_host
