// The Dynamic Kanerva write (Wu et al., Learning Attractor Dynamics for Generative Memory, NeurIPS
// 2018): every address is solved against the memory as it stands, in O(K^2 + K C) a step.
#pragma once

#include "adaptive_memory.h"
#include "bayes_write.h"

namespace kanerva {
namespace KANERVA_ISA {

// The addresses of one step and the update they make; false when arithmetic A does not serve.
// `iterate(i)` sees each proposal but the last.
template <class A, class F>
bool propose_step(AdaptiveMemory<A>& m, double v, int64_t num_iters, F&& iterate) {
  m.solve();
  if (!m.propose(v)) return false;
  for (int64_t i = 1; i < num_iters; ++i) {
    iterate(i - 1);
    if (!m.solve_again() && !(m.refresh() && m.solve_again())) return false;
    if (!m.propose(v)) return false;
  }
  return true;
}

template <class A>
Outcome adaptive_item(const AdaptiveWriteArgs& args, int64_t b, const Episode& e, double ridge,
                      bool last_resort, const Executor& executor) {
  const int64_t K = args.n.K, C = args.n.C;
  const Outcome otherwise = last_resort ? Outcome::failed : Outcome::harder;
  Workspace::Scope scope(Workspace::of_thread());
  AdaptiveMemory<A> m(scope, args.n, executor);
  m.load_state(args.mean, args.cov, ridge, b);
  if (e.steps > 0 && !m.refresh()) return otherwise;
  double evidence = 0.0;
  LogProduct variances;
  const Rows steps{e.index};
  if (e.steps > 0) m.load_next(args.values, b, steps[0]);
  for (int64_t t = 0; t < e.steps; ++t) {
    const double v = e.noise[t];
    m.advance();
    if (!propose_step(m, v, args.num_iters, [](int64_t) {})) return otherwise;
    store(args.weights_out, b, Rows{nullptr, steps[t]}, 1, 0, K, m.now.w, padded<A>(K));
    const double s = m.now.s, gain = m.now.h / s, energy = m.now.energy / s;
    const double kl = 0.5 * (energy * gain + double(C) * (std::log1p(m.now.h / v) - gain));
    store_scalar(args.step_kl, b, steps[t], kl);
    evidence -= 0.5 * energy;
    variances.multiply(s);
    const bool more = t + 1 < e.steps;
    if (more) m.load_next(args.values, b, steps[t + 1]);
    if (!m.commit(more)) return otherwise;
  }
  evidence -= 0.5 * double(C) * (variances.value() + double(e.steps) * kLog2Pi);
  m.settle();
  if (!std::isfinite(evidence) || not_finite(K, m.R.base) || not_finite(K, m.U.base))
    return otherwise;
  store(args.mean_out, b, Rows{}, K, m.R.base);
  store(args.cov_out, b, Rows{}, K, m.U.base);
  store_scalar(args.log_evidence, b, 0, evidence);
  return Outcome::done;
}

inline double adaptive_operations(const Sizes& n, int64_t num_iters) {
  return double(num_iters) * double(n.T) * double(n.K) * double(4 * n.K + 3 * n.C);
}

inline void adaptive_write(const AdaptiveWriteArgs& args, const Executor& executor) {
  const int64_t B = args.n.B, T = args.n.T, K = args.n.K, C = args.n.C;
  const double operations = adaptive_operations(args.n, args.num_iters);
  for_each_item(B, operations, executor, [&](int64_t b, const Executor& inner) {
    Workspace::Scope scope(Workspace::of_thread());
    const Episode e = gather_episode(scope, T, b, args.noise_var, args.mask, View{});
    const double ridge = load_scalar<double>(args.ridge, b);
    Outcome outcome = Outcome::failed;
    if (e.valid && ridge > 0.0 && ridge < HUGE_VAL) {
      if (e.steps < T) {  // what the mask leaves out
        fill(args.weights_out, b, T, K, 0.0);
        fill(args.step_kl, b, T, 1, 0.0);
      }
      outcome = Outcome::harder;
      if (args.mean.dtype == Dtype::float32 && !is_small(e.steps, args.n))
        outcome = adaptive_item<float>(args, b, e, ridge, false, inner);
      if (outcome == Outcome::harder)
        outcome = adaptive_item<double>(args, b, e, ridge, true, inner);
    }
    if (outcome != Outcome::done) {
      fill(args.mean_out, b, K, C, NAN);
      fill(args.cov_out, b, K, K, NAN);
      fill(args.weights_out, b, T, K, NAN);
      fill(args.step_kl, b, T, 1, NAN);
      store_scalar(args.log_evidence, b, 0, NAN);
    }
  });
}

}  // namespace KANERVA_ISA
}  // namespace kanerva
