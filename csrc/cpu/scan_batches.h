// How a scan goes through the chunks of an episode. The factors of a chunk do not depend on the
// mean: where one item has several threads, one of them factorises a batch of chunks ahead of those
// whose columns the others write; otherwise a batch is one chunk. What depends on no state at all
// is loaded by the thread that writes, where one writes and has less to do.
#pragma once

#include <new>

#include "bayes_write.h"

namespace kanerva {
namespace KANERVA_ISA {

constexpr int64_t kSlotsWithoutForks = 256;  // up to which a product is not worth a fork
constexpr int64_t kStepsAhead = 256;         // that are factorised at once

template <class Chunk>
class ScanBatches {
 public:
  // `of_chunk`: what the constructor of a chunk takes after its scope, steps and slots.
  template <class... Args>
  ScanBatches(Workspace::Scope& scope, const Executor& executor, int64_t step, int64_t steps,
              const Sizes& n, const Columns& columns, const Args&... of_chunk)
      : executor_(executor),
        step_(step),
        chunks_((steps + step - 1) / step),
        code_(n.C),
        blocks_(columns.count),
        ahead_(executor.threads() > 1 && n.K <= kSlotsWithoutForks && steps >= 2 * kStepsAhead),
        loads_ahead_(ahead_ && columns.count == 1 && n.C <= n.K),
        size_(ahead_ ? std::max<int64_t>(1, kStepsAhead / step) : 1),
        slots_(scope.take<Chunk>((ahead_ ? 2 : 1) * size_)),
        squares_(scope.take<double>(blocks_ * size_)) {
    for (int64_t i = 0; i < (ahead_ ? 2 : 1) * size_; ++i)
      new (slots_ + i) Chunk(scope, step, n.K, of_chunk...);
  }

  int64_t step() const { return step_; }
  int64_t count(int64_t batch) const { return std::min(size_, chunks_ - batch * size_); }
  Chunk& at(int64_t batch, int64_t i) const { return slots_[(ahead_ ? batch % 2 : 0) * size_ + i]; }
  // sum_t b_t |E_t|^2 of a block of columns of chunk i.
  double& square(int64_t block, int64_t i) const { return squares_[block * size_ + i]; }

  // load(chunk, first step, executor), then factor(chunk, executor), which gives an Outcome, and
  // write(batch, block) of a block of columns. Adds up the log evidence.
  template <class Load, class Factor, class Write>
  Outcome run(Load&& load, Factor&& factor, Write&& write, double& log_evidence) const {
    const int64_t batches = (chunks_ + size_ - 1) / size_, lag = ahead_ ? 1 : 0;
    const auto load_one = [&](int64_t batch, int64_t i, const Executor& executor) {
      load(at(batch, i), (batch * size_ + i) * step_, executor);
    };
    const auto factor_batch = [&](int64_t batch, const Executor& executor) {
      const bool loaded = loads_ahead_ && batch > 0;
      for (int64_t i = 0; i < count(batch); ++i) {
        if (!loaded) load_one(batch, i, executor);
        const Outcome outcome = factor(at(batch, i), executor);
        if (outcome != Outcome::done) return outcome;
      }
      return Outcome::done;
    };
    for (int64_t batch = 0; batch < batches + lag; ++batch) {
      Outcome outcome = Outcome::done;
      if (ahead_) {
        executor_.for_each(1 + blocks_, [&](int64_t task) {
          if (task == 0) {
            if (batch < batches) outcome = factor_batch(batch, serial_executor());
            return;
          }
          if (batch > 0) write(batch - 1, task - 1);
          if (!loads_ahead_) return;
          if (batch > 0) log_evidence += batch_log_evidence(batch - 1);
          if (batch + 1 >= batches) return;
          for (int64_t i = 0; i < count(batch + 1); ++i) load_one(batch + 1, i, serial_executor());
        });
      } else {
        outcome = factor_batch(batch, executor_);
        if (outcome == Outcome::done)
          executor_.for_each(blocks_, [&](int64_t block) { write(batch, block); });
      }
      if (outcome != Outcome::done) return outcome;
      if (!loads_ahead_ && batch >= lag) log_evidence += batch_log_evidence(batch - lag);
    }
    return Outcome::done;
  }

 private:
  double batch_log_evidence(int64_t batch) const {
    double total = 0.0;
    for (int64_t i = 0; i < count(batch); ++i) {
      double quadratic = 0.0;
      for (int64_t block = 0; block < blocks_; ++block) quadratic += square(block, i);
      total += chunk_log_evidence(at(batch, i).chunk, code_, quadratic);
    }
    return total;
  }

  const Executor& executor_;
  const int64_t step_, chunks_, code_, blocks_;
  const bool ahead_, loads_ahead_;
  const int64_t size_;  // chunks of a batch
  Chunk* slots_;
  double* squares_;
};

}  // namespace KANERVA_ISA
}  // namespace kanerva
