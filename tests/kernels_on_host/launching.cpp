// What launchers of the CUDA kernels decide on the host: ./launching CASE prints "ok" or "wrong".
#include <atomic>
#include <cstdio>
#include <cstring>
#include <stdexcept>
#include <thread>
#include <vector>

#include "../../csrc/cuda/once_per_kernel.h"
#include "../../csrc/cuda/plan.cuh"

namespace {

using namespace kanerva;
using namespace kanerva::cuda;

// The limit of shared memory of two kernels on two devices, as a driver keeps it.
int limits[2][2];

void launch_many(OncePerKernel& once, std::atomic<int>& raised, std::atomic<bool>& wrong) {
  for (int i = 0; i < 1000; ++i) {
    const int kernel = i % 2, device = i / 2 % 2;
    int& limit = limits[kernel][device];
    once.call(&limits[kernel], device, [&] {
      limit = 100;
      ++raised;
    });
    if (limit != 100) wrong = true;
  }
}

bool once() {
  OncePerKernel once;
  std::atomic<int> raised{0};
  std::atomic<bool> wrong{false};
  std::vector<std::thread> threads;
  for (int i = 0; i < 8; ++i) threads.emplace_back([&] { launch_many(once, raised, wrong); });
  for (std::thread& thread : threads) thread.join();
  return !wrong && raised == 4;
}

bool retried() {
  OncePerKernel once;
  int calls = 0;
  const auto refuse_once = [&] {
    if (++calls == 1) throw std::runtime_error("refused");
  };
  for (int i = 0; i < 3; ++i) {
    try {
      once.call(&calls, 0, refuse_once);
      if (i == 0) return false;
    } catch (const std::runtime_error&) {
      if (i > 0) return false;
    }
  }
  return calls == 2;
}

Sizes sizes(int64_t B) {
  Sizes n = {};
  n.B = B, n.T = 20, n.K = 17, n.C = 33;
  return n;
}

// Forced teams of tiny memories: as many blocks as fit the processors beside those of the others.
bool forced() {
  Device device;
  device.shared_per_block = 200 * 1024;
  device.processors = 132;
  device.team_work = 0.0;
  for (const int64_t B : {1, 3, 66, 67, 132, 133, 4096}) {
    const int blocks = most_blocks(sizes(B), device);
    if (B * blocks > device.processors) return false;
    const bool team = team_pays({1.0, 1.0}, blocks, 1.0, device);
    if (team != (2 * B <= device.processors)) return false;
  }
  return most_blocks(sizes(3), device) == 44;
}

bool counted() {
  Device device;
  device.shared_per_block = 200 * 1024;
  device.processors = 132;
  return most_blocks(sizes(3), device) == 1 && !team_pays({1e4, 10.0}, 1, 1e4, device);
}

bool environment() {
  unsetenv("KANERVA_TEAM_WORK");
  if (team_work_from_environment() != -1.0) return false;
  setenv("KANERVA_TEAM_WORK", "2.5e6", 1);
  if (team_work_from_environment() != 2.5e6) return false;
  for (const char* text : {"many", "-1", "1x", "nan"}) {
    setenv("KANERVA_TEAM_WORK", text, 1);
    try {
      team_work_from_environment();
      return false;
    } catch (const std::runtime_error& error) {
      if (std::strstr(error.what(), text) == nullptr) return false;
    }
  }
  return true;
}

}  // namespace

int main(int count, char** arguments) {
  const struct {
    const char* name;
    bool (*run)();
  } cases[] = {{"once", once},
               {"retried", retried},
               {"forced", forced},
               {"counted", counted},
               {"environment", environment}};
  for (const auto& one : cases) {
    if (count > 1 && std::strcmp(arguments[1], one.name) == 0) {
      std::puts(one.run() ? "ok" : "wrong");
      return 0;
    }
  }
  std::fputs("no such case\n", stderr);
  return 1;
}
