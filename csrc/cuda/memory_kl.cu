// memory_kl, forward and backward: one block or team per memory, all in float64.
//   2 KL = C tr(U0^-1 U) + tr(D'U0^-1 D) - K C - C (ln|U| - ln|U0|),  D = R - R0
//
// Floor at B = 16, K = 32, C = 100: 0.5 MB in, 0.2 us at 3 TB/s; launch 2 to 3 us and two chains of
// K pivots, 3 us each: latency binds.
#include "spd.cuh"

namespace kanerva::cuda {

namespace {

struct Buffers {
  double* pivots;
  Mat<double> U, U0_inverse, U_inverse, system, factor;  // K x K
  Mat<double> D, Q;                                      // K x C

  __host__ __device__ Buffers(Arena& arena, int K, int C)
      : pivots(arena.take<double>(K)),
        U(arena.matrix<double>(K, K)),
        U0_inverse(arena.matrix<double>(K, K)),
        U_inverse(arena.matrix<double>(K, K)),
        system(arena.matrix<double>(K, K)),
        factor(arena.matrix<double>(K, K)),
        D(arena.matrix<double>(K, C)),
        Q(arena.matrix<double>(K, C)) {}
};

// The inverses, D, and Q = U0^-1 D. False, in every thread, when a covariance is not positive
// definite. Leaves the team synchronised.
template <class Args>
__device__ bool build(const Args& args, int64_t b, const Buffers& m, SpdFacts& belief,
                      SpdFacts& prior) {
  const int K = int(args.n.K), C = int(args.n.C);
  load_covariance(args.prior_cov, b, K, m.system);
  sync();
  prior = invert_spd(K, m.system, m.factor, m.U0_inverse, m.pivots);
  if (!prior.ok) return false;
  load_covariance(args.cov, b, K, m.system);
  load_covariance(args.cov, b, K, m.U);
  load(args.mean, b, 0, 0, K, C, m.D);
  load(args.prior_mean, b, 0, 0, K, C, m.Q);
  sync();
  belief = invert_spd(K, m.system, m.factor, m.U_inverse, m.pivots);
  if (!belief.ok) return false;
  each(K, C, [&](int i, int j) { m.D(i, j) -= m.Q(i, j); });
  sync();
  product<false, false>(K, C, K, m.U0_inverse, m.D, [&](int i, int j, double x) { m.Q(i, j) = x; });
  sync();
  return true;
}

__global__ void __launch_bounds__(256, 1)
    kl_kernel(const __grid_constant__ MemoryKlArgs args, const __grid_constant__ BlockPlan plan,
              char* workspace) {
  const int64_t b = blockIdx.x;
  const int K = int(args.n.K), C = int(args.n.C);
  Arena arena = enter(plan, workspace, b);
  const Buffers m(arena, K, C);
  SpdFacts belief, prior;
  double kl = NAN;
  if (build(args, b, m, belief, prior)) {
    // tr(U0^-1 U) - K = tr(U0^-1 (U - U0)), which does not cancel for close beliefs.
    load(args.prior_cov, b, 0, 0, K, K, m.system);
    sync();
    double sum = 0.0;
    each(K, K, [&](int i, int j) {
      sum += double(C) * m.U0_inverse(i, j) * (m.U(i, j) - m.system(i, j));
    });
    each(K, C, [&](int i, int j) { sum += m.Q(i, j) * m.D(i, j); });
    sum = team_sum(sum);
    kl = 0.5 * (sum + double(C) * (prior.log_det - belief.log_det));
    if (kl < 0.0) kl = 0.0;  // two equal beliefs, up to rounding
  }
  if (thread() == 0) store_scalar(args.kl_out, b, 0, kl);
}

// dU0 = g/2 (C U0^-1 - C U0^-1 U U0^-1 - Q Q'),  dU = g C/2 (U0^-1 - U^-1),  dR = g Q = -dR0
__global__ void __launch_bounds__(256, 1)
    kl_backward_kernel(const __grid_constant__ MemoryKlBackwardArgs args,
                       const __grid_constant__ BlockPlan plan, char* workspace) {
  const int64_t b = blockIdx.x;
  const int K = int(args.n.K), C = int(args.n.C);
  Arena arena = enter(plan, workspace, b);
  const Buffers m(arena, K, C);
  SpdFacts belief, prior;
  if (!build(args, b, m, belief, prior)) {
    fill(args.d_mean, b, 0, 0, K, C, NAN);
    fill(args.d_prior_mean, b, 0, 0, K, C, NAN);
    fill(args.d_cov, b, 0, 0, K, K, NAN);
    fill(args.d_prior_cov, b, 0, 0, K, K, NAN);
    return;
  }
  const double g = scalar(args.grad, b);
  product<false, false>(K, K, K, m.U0_inverse, m.U,
                        [&](int i, int j, double x) { m.system(i, j) = x; });
  sync();
  product<false, false>(K, K, K, m.system, m.U0_inverse, [&](int i, int j, double x) {
    m.factor(i, j) = 0.5 * g * double(C) * (m.U0_inverse(i, j) - x);
  });
  sync();
  product<false, true>(K, K, C, m.Q, m.Q,
                       [&](int i, int j, double x) { m.factor(i, j) -= 0.5 * g * x; });
  sync();
  symmetrise(K, m.factor);
  each(K, K, [&](int i, int j) {
    m.U(i, j) = 0.5 * g * double(C) * (m.U0_inverse(i, j) - m.U_inverse(i, j));
  });
  each(K, C, [&](int i, int j) {
    m.Q(i, j) *= g;
    m.D(i, j) = -m.Q(i, j);
  });
  sync();
  store(args.d_prior_cov, b, 0, 0, K, K, m.factor);
  store(args.d_cov, b, 0, 0, K, K, m.U);
  store(args.d_mean, b, 0, 0, K, C, m.Q);
  store(args.d_prior_mean, b, 0, 0, K, C, m.D);
}

BlockPlan plan_of(const Sizes& n, const Device& device) {
  const int K = int(n.K), C = int(n.C);
  const double squares = double(K) * double(K);
  return plan_block(
      n, device, [&](Arena& arena, int) { Buffers(arena, K, C); },
      [&](int) -> Work { return {squares * (4.0 * K + C), 2.0 * K + 16}; });
}

}  // namespace

size_t memory_kl_workspace(const MemoryKlArgs& args, const Device& device) {
  return workspace_of(args.n, plan_of(args.n, device));
}

void memory_kl(const MemoryKlArgs& args, const Launch& to) {
  start(kl_kernel, args, to, plan_of(args.n, to.device));
}

size_t memory_kl_backward_workspace(const MemoryKlBackwardArgs& args, const Device& device) {
  return workspace_of(args.n, plan_of(args.n, device));
}

void memory_kl_backward(const MemoryKlBackwardArgs& args, const Launch& to) {
  start(kl_backward_kernel, args, to, plan_of(args.n, to.device));
}

}  // namespace kanerva::cuda
