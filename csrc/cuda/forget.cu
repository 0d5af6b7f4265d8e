// forget, forward and backward: one block or team per memory, in float64. A write of negative
// noise, in chunks of L steps:
//   X = W U,  S = V - X W' = F F',  P = F^-1 X,  E = F^-1 (Z - W R),  R <- R - P'E,  U <- U + P'P
// and its adjoint in closed form from what remains (../../kanerva_ext/reference/forget.py).
//
// Floor at (B, T, K, C) = (16, 32, 32, 100): 0.9 MB in and out, 0.3 us at 3 TB/s; launch 2 to 3 us
// and the chain of L = 32 pivots, 2 to 3 us: latency binds.
#include "spd.cuh"
#include "write_chunk.cuh"

namespace kanerva::cuda {

namespace {

constexpr int kLongestChunk = 64;  // of a team

int at_most(int x, int most) { return x < most ? x : most; }

struct ForgetBuffers {
  Chunk<double> chunk;
  Mat<double> D, E, R;  // L x C, L x C, K x C

  __host__ __device__ ForgetBuffers(Arena& arena, int L, int K, int C)
      : chunk(arena, L, K),
        D(arena.matrix<double>(L, C)),
        E(arena.matrix<double>(L, C)),
        R(arena.matrix<double>(K, C)) {}
};

// False, in every thread, when the item is NaN. Leaves the team unsynchronised.
__device__ bool forget_item(const ForgetArgs& args, int64_t b, int steps, Arena arena) {
  const int K = int(args.n.K), C = int(args.n.C);
  const ForgetBuffers m(arena, steps, K, C);
  const Chunk<double>& c = m.chunk;
  load_covariance(args.cov, b, K, c.U);
  load(args.mean, b, 0, 0, K, C, m.R);
  sync();
  for (int64_t first = 0; first < args.n.T; first += steps) {
    const int L = int(first + steps <= args.n.T ? steps : args.n.T - first);
    if (!load_chunk(args, b, first, L, c)) return false;
    load(args.values, b, first, 0, L, C, m.D, c.kept);
    product<false, false>(L, K, K, c.W, c.U, [&](int i, int j, double x) { c.X(i, j) = x; });
    sync();
    product<false, false>(L, C, K, c.W, m.R, [&](int i, int j, double x) { m.D(i, j) -= x; });
    product<false, true>(L, L, K, c.X, c.W, [&](int i, int j, double x) {
      c.S(i, j) = (i == j ? c.noise[i] : 0.0) - x;
    });
    sync();
    if (!factorise(L, c.S, c.V, c.pivots)) return false;
    product<false, false>(L, K, L, c.V, c.X, [&](int i, int j, double x) { c.P(i, j) = x; });
    product<false, false>(L, C, L, c.V, m.D, [&](int i, int j, double x) { m.E(i, j) = x; });
    sync();
    product<true, false>(K, C, L, c.P, m.E, [&](int i, int j, double x) { m.R(i, j) -= x; });
    product<true, false>(K, K, L, c.P, c.P, [&](int i, int j, double x) { c.U(i, j) += x; });
    sync();
  }
  if (not_finite(K, C, m.R) || not_finite(K, K, c.U)) return false;
  store(args.mean_out, b, 0, 0, K, C, m.R);
  store(args.cov_out, b, 0, 0, K, K, c.U);
  return true;
}

__global__ void __launch_bounds__(256, 1)
    forget_kernel(const __grid_constant__ ForgetArgs args, const __grid_constant__ BlockPlan plan,
                  char* workspace) {
  const int64_t b = blockIdx.x;
  const int K = int(args.n.K), C = int(args.n.C);
  const int steps = plan.tile < kLongestChunk ? plan.tile : kLongestChunk;
  if (forget_item(args, b, steps, enter(plan, workspace, b))) return;
  fill(args.mean_out, b, 0, 0, K, C, NAN);
  fill(args.cov_out, b, 0, 0, K, K, NAN);
}

BlockPlan plan_of(const ForgetArgs& args, const Device& device) {
  const int K = int(args.n.K), C = int(args.n.C);
  const double T = double(args.n.T);
  return plan_block(
      args.n, device,
      [&](Arena& arena, int tile) { ForgetBuffers(arena, at_most(tile, kLongestChunk), K, C); },
      [&](int tile) -> Work {
        const int L = at_most(tile, kLongestChunk);
        return {T * (2.0 * K * (K + C) + L * (2.0 * K + C + L)), T * (1 + 8.0 / L) + 6};
      });
}

struct AdjointBuffers {
  double* scale;                // of a tile: -1 / v
  int* kept;                    // whether the mask keeps the step
  Mat<double> W, G, half, M;    // tile x K
  Mat<double> A, dZ;            // tile x C
  Mat<double> U, gU, keep, dU;  // K x K
  Mat<double> R, gR, WA;        // K x C

  __host__ __device__ AdjointBuffers(Arena& arena, int tile, int K, int C)
      : scale(arena.take<double>(tile)),
        kept(arena.take<int>(tile)),
        W(arena.matrix<double>(tile, K)),
        G(arena.matrix<double>(tile, K)),
        half(arena.matrix<double>(tile, K)),
        M(arena.matrix<double>(tile, K)),
        A(arena.matrix<double>(tile, C)),
        dZ(arena.matrix<double>(tile, C)),
        U(arena.matrix<double>(K, K)),
        gU(arena.matrix<double>(K, K)),
        keep(arena.matrix<double>(K, K)),
        dU(arena.matrix<double>(K, K)),
        R(arena.matrix<double>(K, C)),
        gR(arena.matrix<double>(K, C)),
        WA(arena.matrix<double>(K, C)) {}
};

// With A = -(Z - W R) / v and G = -W U / v, R and U what remains, a tile at a time:
//   dZ = G gR,  dW = (A gR' - 2 G gU) U - dZ R',  dv = rowsum(dZ * A) - rowsum(G gU * G)
// and with J = I - W'G at last: dR = J gR,  dU = J gU J' + sym(dR A'W).
// False, in every thread, when the item is NaN. Leaves the team unsynchronised.
__device__ bool adjoint_item(const ForgetBackwardArgs& args, int64_t b, int tile, Arena arena) {
  const int64_t T = args.n.T;
  const int K = int(args.n.K), C = int(args.n.C);
  const AdjointBuffers m(arena, tile, K, C);
  load(args.rest_cov, b, 0, 0, K, K, m.U);
  load(args.rest_mean, b, 0, 0, K, C, m.R);
  load_or_zero(args.grad_cov, b, 0, K, K, m.gU);
  load_or_zero(args.grad_mean, b, 0, K, C, m.gR);
  each(K, K, [&](int i, int j) { m.keep(i, j) = i == j ? 1.0 : 0.0; });
  each(K, C, [&](int i, int j) { m.WA(i, j) = 0.0; });
  sync();
  symmetrise(K, m.U);
  symmetrise(K, m.gU);
  if (not_finite(K, C, m.R) || not_finite(K, K, m.U)) return false;
  for (int64_t first = 0; first < T; first += tile) {
    const int L = int(first + tile <= T ? tile : T - first);
    bool bad = false;
    for (int t = thread(); t < L; t += threads()) {
      m.kept[t] = keeps_step(args.mask, b, first + t);
      const double v = m.kept[t] ? scalar(args.noise_var, b, first + t) : 1.0;
      bad = bad || !(v > 0.0 && v <= kLargestNoise);
      m.scale[t] = -1.0 / v;
    }
    if (any(bad)) return false;
    load(args.weights, b, first, 0, L, K, m.W, m.kept);
    load(args.values, b, first, 0, L, C, m.A, m.kept);
    sync();
    product<false, false>(L, C, K, m.W, m.R, [&](int i, int j, double x) {
      m.A(i, j) = m.scale[i] * (m.A(i, j) - x);
    });
    product<false, false>(L, K, K, m.W, m.U,
                          [&](int i, int j, double x) { m.G(i, j) = m.scale[i] * x; });
    sync();
    product<false, false>(L, C, K, m.G, m.gR, [&](int i, int j, double x) { m.dZ(i, j) = x; });
    product<false, false>(L, K, K, m.G, m.gU, [&](int i, int j, double x) { m.half(i, j) = x; });
    product<true, false>(K, K, L, m.W, m.G, [&](int i, int j, double x) { m.keep(i, j) -= x; });
    product<true, false>(K, C, L, m.W, m.A, [&](int i, int j, double x) { m.WA(i, j) += x; });
    sync();
    store(args.d_values, b, first, 0, L, C, m.dZ);
    product<false, true>(L, K, C, m.A, m.gR,
                         [&](int i, int j, double x) { m.M(i, j) = x - 2.0 * m.half(i, j); });
    for (int t = warp(); t < L; t += warps()) {
      double sum = 0.0;
      for (int j = lane(); j < C; j += 32) sum += m.dZ(t, j) * m.A(t, j);
      for (int k = lane(); k < K; k += 32) sum -= m.half(t, k) * m.G(t, k);
      sum = warp_sum(sum);
      if (lane() == 0) store_scalar(args.d_noise_var, b, first + t, sum);
    }
    sync();
    product<false, false>(L, K, K, m.M, m.U, [&](int i, int j, double x) { m.G(i, j) = x; });
    product<false, true>(L, K, C, m.dZ, m.R, [&](int i, int j, double x) { m.G(i, j) -= x; });
    sync();
    store(args.d_weights, b, first, 0, L, K, m.G);
  }
  const Mat<double> dR = m.R, keep_gU = m.U;  // neither R nor U is needed any more
  product<false, false>(K, C, K, m.keep, m.gR, [&](int i, int j, double x) { dR(i, j) = x; });
  product<false, false>(K, K, K, m.keep, m.gU, [&](int i, int j, double x) { keep_gU(i, j) = x; });
  sync();
  store(args.d_mean, b, 0, 0, K, C, dR);
  product<false, true>(K, K, C, dR, m.WA, [&](int i, int j, double x) { m.dU(i, j) = x; });
  product<false, true>(K, K, K, keep_gU, m.keep, [&](int i, int j, double x) { m.dU(i, j) += x; });
  sync();
  symmetrise(K, m.dU);
  store(args.d_cov, b, 0, 0, K, K, m.dU);
  return true;
}

__global__ void __launch_bounds__(256, 1)
    forget_backward_kernel(const __grid_constant__ ForgetBackwardArgs args,
                           const __grid_constant__ BlockPlan plan, char* workspace) {
  const int64_t b = blockIdx.x, T = args.n.T;
  const int K = int(args.n.K), C = int(args.n.C);
  if (adjoint_item(args, b, plan.tile, enter(plan, workspace, b))) return;
  sync();  // some of it may have been stored
  fill(args.d_mean, b, 0, 0, K, C, NAN);
  fill(args.d_cov, b, 0, 0, K, K, NAN);
  fill(args.d_weights, b, 0, 0, T, K, NAN);
  fill(args.d_values, b, 0, 0, T, C, NAN);
  fill(args.d_noise_var, b, 0, 0, T, 1, NAN);
}

BlockPlan plan_of(const ForgetBackwardArgs& args, const Device& device) {
  const int K = int(args.n.K), C = int(args.n.C);
  const double T = double(args.n.T);
  return plan_block(
      args.n, device, [&](Arena& arena, int tile) { AdjointBuffers(arena, tile, K, C); },
      [&](int tile) -> Work {
        return {(5 * T + 2.0 * K) * K * C + (4 * T + 2.0 * K) * K * K, 8 * T / tile + 10};
      });
}

}  // namespace

size_t forget_workspace(const ForgetArgs& args, const Device& device) {
  return workspace_of(args.n, plan_of(args, device));
}

void forget(const ForgetArgs& args, const Launch& to) {
  start(forget_kernel, args, to, plan_of(args, to.device));
}

size_t forget_backward_workspace(const ForgetBackwardArgs& args, const Device& device) {
  return workspace_of(args.n, plan_of(args, device));
}

void forget_backward(const ForgetBackwardArgs& args, const Launch& to) {
  start(forget_backward_kernel, args, to, plan_of(args, to.device));
}

}  // namespace kanerva::cuda
