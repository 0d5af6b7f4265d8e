// What is done once for every kernel on every device, by whichever thread comes first.
#pragma once

#include <mutex>
#include <set>
#include <utility>

namespace kanerva::cuda {

class OncePerKernel {
 public:
  // Calls f() unless that has succeeded before for this kernel and device. When it returns, f() is
  // done, by whatever thread; where f() throws, the next caller tries again.
  template <class F>
  void call(const void* kernel, int device, F f) {
    const std::lock_guard<std::mutex> lock(mutex_);
    const std::pair<const void*, int> key(kernel, device);
    if (done_.count(key) > 0) return;
    f();
    done_.insert(key);
  }

 private:
  std::mutex mutex_;
  std::set<std::pair<const void*, int>> done_;
};

}  // namespace kanerva::cuda
