// adaptive_write, forward: one block or team per memory, step by step, in float64. A step's address
// depends on the step before: there are no chunks.
//
// Floor at B = 16, T = K = 32, C = 100: 0.9 MB in and out, 0.3 us at 3 TB/s; 10 million
// multiply-adds, 0.3 us at 30 T/s; launch 2 to 3 us and a chain of T steps of 12 barriers, with a
// matrix-vector product between each two: latency binds.
//
// Where the small kernel serves (small_adaptive.cuh: float32, three barriers a step), it goes
// first, and only what it marks is done here.
#include "adaptive_step.cuh"
#include "small_adaptive.cuh"

namespace kanerva::cuda {

namespace {

// False, in every thread, when the item is NaN. Leaves the team unsynchronised.
__device__ bool write_item(const AdaptiveWriteArgs& args, int64_t b, Arena arena) {
  const int K = int(args.n.K), C = int(args.n.C);
  const StepBuffers m(arena, K, C, args.num_iters > 1);
  Step step(m, args, b);
  step.load_state(args, b);
  if (not_finite(K, K, m.U) || !step.refresh(m.now)) return false;
  double evidence = 0.0;
  for (int64_t t = 0; t < args.n.T; ++t) {
    if (!keeps_step(args.mask, b, t)) {
      fill(args.weights_out, b, t, 0, 1, K, 0.0);
      if (thread() == 0) store_scalar(args.step_kl, b, t, 0.0);
      continue;
    }
    const double v = scalar(args.noise_var, b, t);
    if (!(v > 0.0 && v <= kInfinite)) return false;
    load_row(args.values, b, t, C, m.z);
    sync();
    for (int64_t i = 1; i <= args.num_iters; ++i) {
      const bool last = i == args.num_iters;
      step.solve(i == 1 ? m.now : m.next, last);
      if (!step.take_gain(v)) return false;
      if (!last && !step.move(m.now, m.next, false)) return false;
    }
    const double s = step.s, ratio = step.h / s, energy = step.energy;
    // ln(s/v) = ln(1 + h/v), which is exact for small h too.
    const double kl = 0.5 * (energy * (ratio / s) + double(C) * (log1p(step.h / v) - ratio));
    evidence -= 0.5 * (energy / s + double(C) * (log(s) + kLog2Pi));
    if (!is_finite(kl)) return false;
    store_row(args.weights_out, b, t, K, m.w);
    if (thread() == 0) store_scalar(args.step_kl, b, t, kl);
    each(K, K, [&](int i, int j) { m.U(i, j) -= (m.c[i] * m.c[j]) / s; });
    if (!step.commit()) return false;
  }
  if (!is_finite(evidence) || not_finite(K, C, m.now.R) || not_finite(K, K, m.U)) return false;
  store(args.mean_out, b, 0, 0, K, C, m.now.R);
  store(args.cov_out, b, 0, 0, K, K, m.U);
  if (thread() == 0) store_scalar(args.log_evidence, b, 0, evidence);
  return true;
}

// Every item or, where there are marks, those that have one.
__global__ void __launch_bounds__(256, 1)
    adaptive_write_kernel(const __grid_constant__ AdaptiveWriteArgs args,
                          const __grid_constant__ BlockPlan plan, char* workspace, const int* marks,
                          int shares) {
  const int K = int(args.n.K), C = int(args.n.C);
  for_marked(
      marks, args.n.B,
      [&](int64_t b) {
        const bool done = write_item(args, b, enter(plan, workspace, b));
        sync();  // some of it may have been stored
        if (done) return;
        fill(args.mean_out, b, 0, 0, K, C, NAN);
        fill(args.cov_out, b, 0, 0, K, K, NAN);
        fill(args.weights_out, b, 0, 0, args.n.T, K, NAN);
        fill(args.step_kl, b, 0, 0, args.n.T, 1, NAN);
        if (thread() == 0) store_scalar(args.log_evidence, b, 0, NAN);
      },
      shares);
}

BlockPlan plan_of(const AdaptiveWriteArgs& args, const Device& device) {
  const int K = int(args.n.K), C = int(args.n.C);
  const double steps = double(args.n.T) * double(args.num_iters), n = K < C ? K : C;
  return plan_block(
      args.n, device, [&](Arena& arena, int) { StepBuffers(arena, K, C, args.num_iters > 1); },
      [&](int) -> Work {
        return {steps * (6.0 * K * C + 2.0 * K * K + 6.0 * n * n), 14 * steps + n + 8};
      });
}

}  // namespace

size_t adaptive_write_workspace(const AdaptiveWriteArgs& args, const Device& device) {
  const BlockPlan plan = plan_of(args, device);
  return workspace_of(args.n, plan_small(args, plan.team, device), plan);
}

void adaptive_write(const AdaptiveWriteArgs& args, const Launch& to) {
  const BlockPlan plan = plan_of(args, to.device);
  const bool few = args.n.K <= 32;
  start_small(few ? small_adaptive_kernel<32> : small_adaptive_kernel<64>,
              few ? SmallAdaptive<32>::kThreads : SmallAdaptive<64>::kThreads,
              plan_small(args, plan.team, to.device), adaptive_write_kernel, plan, args, to);
}

}  // namespace kanerva::cuda
