// statistics, forward and backward: (R, U) -> (U^-1 R, U^-1), one block or team per memory, in
// float64.
//
// Floor at B = 16, K = 32, C = 100: 0.6 MB in and out, 0.2 us at 3 TB/s; launch 2 to 3 us and a
// chain of K pivots, 3 us: latency binds.
#include "spd.cuh"

namespace kanerva::cuda {

namespace {

struct Buffers {
  double* pivots;
  Mat<double> P, system, factor;  // K x K
  Mat<double> R, S;               // K x C

  __host__ __device__ Buffers(Arena& arena, int K, int C)
      : pivots(arena.take<double>(K)),
        P(arena.matrix<double>(K, K)),
        system(arena.matrix<double>(K, K)),
        factor(arena.matrix<double>(K, K)),
        R(arena.matrix<double>(K, C)),
        S(arena.matrix<double>(K, C)) {}
};

__global__ void __launch_bounds__(256, 1)
    statistics_kernel(const __grid_constant__ StatisticsArgs args,
                      const __grid_constant__ BlockPlan plan, char* workspace) {
  const int64_t b = blockIdx.x;
  const int K = int(args.n.K), C = int(args.n.C);
  Arena arena = enter(plan, workspace, b);
  const Buffers m(arena, K, C);
  load_covariance(args.cov, b, K, m.system);
  load(args.mean, b, 0, 0, K, C, m.R);
  sync();
  if (not_finite(K, C, m.R) || !invert_spd(K, m.system, m.factor, m.P, m.pivots).ok) {
    fill(args.shift_out, b, 0, 0, K, C, NAN);
    fill(args.precision_out, b, 0, 0, K, K, NAN);
    return;
  }
  product<false, false>(K, C, K, m.P, m.R, [&](int i, int j, double x) { m.S(i, j) = x; });
  sync();
  store(args.shift_out, b, 0, 0, K, C, m.S);
  store(args.precision_out, b, 0, 0, K, K, m.P);
}

// With P = U^-1 and S = P R: dR = P gS,  dU = -sym(P gP P + dR S').
__global__ void __launch_bounds__(256, 1)
    statistics_backward_kernel(const __grid_constant__ StatisticsBackwardArgs args,
                               const __grid_constant__ BlockPlan plan, char* workspace) {
  const int64_t b = blockIdx.x;
  const int K = int(args.n.K), C = int(args.n.C);
  Arena arena = enter(plan, workspace, b);
  const Buffers m(arena, K, C);
  const Mat<double> gS = m.R, dR = m.S, gP = m.system, dU = m.factor;
  load(args.precision, b, 0, 0, K, K, m.P);
  load_or_zero(args.grad_shift, b, 0, K, C, gS);
  load_or_zero(args.grad_precision, b, 0, K, K, gP);
  sync();
  symmetrise(K, gP);
  product<false, false>(K, C, K, m.P, gS, [&](int i, int j, double x) { dR(i, j) = x; });
  product<false, false>(K, K, K, m.P, gP, [&](int i, int j, double x) { dU(i, j) = x; });
  sync();
  store(args.d_mean, b, 0, 0, K, C, dR);
  product<false, false>(K, K, K, dU, m.P, [&](int i, int j, double x) { gP(i, j) = -x; });
  load(args.shift, b, 0, 0, K, C, m.R);
  sync();
  product<false, true>(K, K, C, dR, m.R, [&](int i, int j, double x) { gP(i, j) -= x; });
  sync();
  symmetrise(K, gP);
  store(args.d_cov, b, 0, 0, K, K, gP);
}

BlockPlan plan_of(const Sizes& n, const Device& device) {
  const int K = int(n.K), C = int(n.C);
  const double squares = double(K) * double(K);
  return plan_block(
      n, device, [&](Arena& arena, int) { Buffers(arena, K, C); },
      [&](int) -> Work { return {squares * (2.0 * K + C), K + 10.0}; });
}

}  // namespace

size_t statistics_workspace(const StatisticsArgs& args, const Device& device) {
  return workspace_of(args.n, plan_of(args.n, device));
}

void statistics(const StatisticsArgs& args, const Launch& to) {
  start(statistics_kernel, args, to, plan_of(args.n, to.device));
}

size_t statistics_backward_workspace(const StatisticsBackwardArgs& args, const Device& device) {
  return workspace_of(args.n, plan_of(args.n, device));
}

void statistics_backward(const StatisticsBackwardArgs& args, const Launch& to) {
  start(statistics_backward_kernel, args, to, plan_of(args.n, to.device));
}

}  // namespace kanerva::cuda
