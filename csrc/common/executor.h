// How the numerical core runs independent tasks: it is handed a parallel-for and starts no threads
// of its own.
#pragma once

#include <cstdint>
#include <type_traits>

namespace kanerva {

class Executor {
 public:
  virtual ~Executor();
  virtual int64_t threads() const = 0;
  // Calls body(data, task) once for every task in [0, tasks), possibly concurrently.
  virtual void run(int64_t tasks, void (*body)(void*, int64_t), void* data) const = 0;

  template <class F>
  void for_each(int64_t tasks, F&& f) const {
    if (tasks <= 1 || threads() <= 1) {
      for (int64_t i = 0; i < tasks; ++i) f(i);
      return;
    }
    using G = std::remove_reference_t<F>;
    run(tasks, [](void* g, int64_t i) { (*static_cast<G*>(g))(i); }, &f);
  }
};

// Runs everything in the calling thread.
const Executor& serial_executor();

}  // namespace kanerva
