// csrc/cuda/once_per_kernel.h by many threads, and where it fails: prints "ok" or "wrong".
#include "../../csrc/cuda/once_per_kernel.h"

#include <atomic>
#include <cstdio>
#include <stdexcept>
#include <thread>
#include <vector>

namespace {

using kanerva::cuda::OncePerKernel;

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

}  // namespace

int main() { std::puts(once() && retried() ? "ok" : "wrong"); }
