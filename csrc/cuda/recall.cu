// recall, forward and backward: least-squares addresses w = (R R' + lambda I)^-1 R z and, where a
// covariance is given, the read at them; one block or team per memory, queries in tiles. The
// smaller of two equal forms is factorised, as in ../cpu/address_solver.h: K x K, or, for a code
// narrower than the memory, w = R (R'R + lambda I)^-1 z.
//
// Floor at B = 16, T = K = 32, C = 100: 1 MB in and out, 0.3 us at 3 TB/s; 6 million multiply-adds;
// launch 2 to 3 us and a chain of K pivots, 3 us: latency binds.
//
// Arithmetic: float32 while the condition, from the pivots, is at most 16; else float64. One step
// of refinement above 2 and 1e3: an explicit inverse alone is not backward stable.
#include "small_recall.cuh"
#include "spd.cuh"

namespace kanerva::cuda {

namespace {

template <class F>
struct Buffers {
  F* pivots;
  Mat<F> inverse, system, factor;  // n x n, n = min(K, C)
  Mat<F> W, Y, gW;                 // tile x K
  Mat<F> Z, V, gZ;                 // tile x C
  Mat<F> narrow;                   // tile x n
  Mat<F> R, dR;                    // K x C
  Mat<F> U, dU;                    // K x K

  __host__ __device__ Buffers(Arena& arena, int tile, int K, int C, bool backward)
      : pivots(arena.take<F>(K < C ? K : C)),
        inverse(arena.matrix<F>(K < C ? K : C, K < C ? K : C)),
        system(arena.matrix<F>(K < C ? K : C, K < C ? K : C)),
        factor(arena.matrix<F>(K < C ? K : C, K < C ? K : C)),
        W(arena.matrix<F>(tile, K)),
        Y(arena.matrix<F>(tile, K)),
        gW(backward ? arena.matrix<F>(tile, K) : Mat<F>{nullptr, 0}),
        Z(arena.matrix<F>(tile, C)),
        V(arena.matrix<F>(tile, C)),
        gZ(backward ? arena.matrix<F>(tile, C) : Mat<F>{nullptr, 0}),
        narrow(arena.matrix<F>(tile, K < C ? K : C)),
        R(arena.matrix<F>(K, C)),
        dR(backward ? arena.matrix<F>(K, C) : Mat<F>{nullptr, 0}),
        U(arena.matrix<F>(K, K)),
        dU(backward ? arena.matrix<F>(K, K) : Mat<F>{nullptr, 0}) {}
};

// The system of one memory and what is done with it for a tile of queries, in arithmetic F.
template <class F>
struct Solver {
  const Buffers<F>& m;
  const int K, C;
  const bool wide;  // the K x K form
  double ridge = 0.0;
  bool refines = false;

  __device__ Solver(const Buffers<F>& buffers, const Sizes& n)
      : m(buffers), K(int(n.K)), C(int(n.C)), wide(n.K <= n.C) {}

  // Leaves the team synchronised; the same outcome in every thread.
  __device__ Outcome build(const View& mean, const View& ridges, int64_t b, double limit) {
    ridge = scalar(ridges, b);
    if (!(ridge > 0.0 && ridge <= kInfinite)) return Outcome::failed;
    load(mean, b, 0, 0, K, C, m.R);
    sync();
    const auto store = [&](int i, int j, F x) { m.system(i, j) = x + (i == j ? F(ridge) : F(0)); };
    if (wide) {
      product<false, true>(K, K, C, m.R, m.R, store);
    } else {
      product<true, false>(C, C, K, m.R, m.R, store);
    }
    sync();
    const SpdFacts facts = invert_spd(wide ? K : C, m.system, m.factor, m.inverse, m.pivots);
    refines = facts.condition > (sizeof(F) == 4 ? kVeryEasy : kWellConditioned);
    if (facts.ok && facts.condition <= limit) return Outcome::done;
    return limit < kNoLimit ? Outcome::harder : facts.ok ? Outcome::done : Outcome::failed;
  }

  // W = the addresses of the queries in Z. Leaves the team synchronised.
  __device__ void solve(int count) const {
    if (!wide) {
      product<false, false>(count, C, C, m.Z, m.inverse,
                            [&](int i, int j, F x) { m.narrow(i, j) = x; });
      sync();
      product<false, true>(count, K, C, m.narrow, m.R, [&](int i, int j, F x) { m.W(i, j) = x; });
      sync();
      return;
    }
    product<false, true>(count, K, C, m.Z, m.R, [&](int i, int j, F x) { m.narrow(i, j) = x; });
    sync();
    product<false, false>(count, K, K, m.narrow, m.inverse,
                          [&](int i, int j, F x) { m.W(i, j) = x; });
    sync();
    if (!refines) return;
    product<false, false>(count, C, K, m.W, m.R,
                          [&](int i, int j, F x) { m.V(i, j) = m.Z(i, j) - x; });
    sync();
    product<false, true>(count, K, C, m.V, m.R,
                         [&](int i, int j, F x) { m.narrow(i, j) = x - F(ridge) * m.W(i, j); });
    sync();
    product<false, false>(count, K, K, m.narrow, m.inverse,
                          [&](int i, int j, F x) { m.W(i, j) += x; });
    sync();
  }

  // The adjoint of solve: gW in, gZ out, dR added to, Z lost. Returns this thread's share of the
  // gradient of lambda. Leaves the team synchronised.
  __device__ double adjoint(int count) const {
    double d_ridge = 0.0;
    if (wide) {  // y = A^-1 gw, gz = R'y, dR = y (z - R'w)' - w gz'
      product<false, false>(count, K, K, m.gW, m.inverse, [&](int i, int j, F x) {
        m.Y(i, j) = x;
        d_ridge -= double(x) * double(m.W(i, j));
      });
      product<false, false>(count, C, K, m.W, m.R, [&](int i, int j, F x) { m.Z(i, j) -= x; });
      sync();
      product<false, false>(count, C, K, m.Y, m.R, [&](int i, int j, F x) { m.gZ(i, j) = x; });
      product<true, false>(K, C, count, m.Y, m.Z, [&](int i, int j, F x) { m.dR(i, j) += x; });
    } else {  // with u = (R'R + lambda I)^-1 z the residual is lambda u: y lambda = gw - R gz
      product<false, false>(count, C, K, m.gW, m.R, [&](int i, int j, F x) { m.V(i, j) = x; });
      sync();
      product<false, false>(count, C, C, m.V, m.inverse, [&](int i, int j, F x) {
        m.gZ(i, j) = x;
        d_ridge -= double(x) * double(m.narrow(i, j));
      });
      sync();
      product<false, true>(count, K, C, m.gZ, m.R,
                           [&](int i, int j, F x) { m.Y(i, j) = m.gW(i, j) - x; });
      sync();
      product<true, false>(K, C, count, m.Y, m.narrow, [&](int i, int j, F x) { m.dR(i, j) += x; });
    }
    sync();
    product<true, false>(K, C, count, m.W, m.gZ, [&](int i, int j, F x) { m.dR(i, j) -= x; });
    sync();
    return d_ridge;
  }
};

template <class F>
__device__ Outcome recall_block(const RecallArgs& args, int64_t b, int tile, Arena arena,
                                double limit) {
  const int64_t T = args.n.T;
  const int K = int(args.n.K), C = int(args.n.C);
  const bool reads = args.cov.data != nullptr;
  const Buffers<F> m(arena, tile, K, C, false);
  Solver<F> solver(m, args.n);
  const Outcome outcome = solver.build(args.mean, args.ridge, b, limit);
  if (outcome != Outcome::done) return outcome;
  bool bad = false;
  if (reads) {
    load(args.cov, b, 0, 0, K, K, m.U);
    sync();
    bad = not_finite(K, K, m.U);
  }
  for (int64_t first = 0; first < T && !bad; first += tile) {
    const int count = int(first + tile <= T ? tile : T - first);
    load(args.queries, b, first, 0, count, C, m.Z);
    sync();
    bad = not_finite(count, C, m.Z);
    solver.solve(count);
    store(args.weights_out, b, first, 0, count, K, m.W);
    if (reads) {
      product<false, false>(count, C, K, m.W, m.R, [&](int i, int j, F x) { m.V(i, j) = x; });
      product<false, false>(count, K, K, m.W, m.U, [&](int i, int j, F x) { m.Y(i, j) = x; });
      sync();
      store(args.values_out, b, first, 0, count, C, m.V);
      store_variances(args.var_out, b, first, count, K, m.W, m.Y);
    }
    sync();
  }
  return bad ? Outcome::failed : Outcome::done;
}

template <class F>
__device__ Outcome adjoint_block(const RecallBackwardArgs& args, int64_t b, int tile, Arena arena,
                                 double limit) {
  const int64_t T = args.n.T;
  const int K = int(args.n.K), C = int(args.n.C);
  const bool reads = args.cov.data != nullptr;
  const Buffers<F> m(arena, tile, K, C, true);
  Solver<F> solver(m, args.n);
  const Outcome outcome = solver.build(args.mean, args.ridge, b, limit);
  if (outcome != Outcome::done) return outcome;
  if (reads) load_covariance(args.cov, b, K, m.U);
  each(K, C, [&](int i, int j) { m.dR(i, j) = F(0); });
  each(K, K, [&](int i, int j) { m.dU(i, j) = F(0); });
  double d_ridge = 0.0;
  for (int64_t first = 0; first < T; first += tile) {
    const int count = int(first + tile <= T ? tile : T - first);
    load(args.queries, b, first, 0, count, C, m.Z);
    sync();
    solver.solve(count);
    if (args.grad_weights.data != nullptr) {
      load(args.grad_weights, b, first, 0, count, K, m.gW);
    } else {
      each(count, K, [&](int i, int j) { m.gW(i, j) = F(0); });
    }
    sync();
    if (reads) {
      read_adjoint(args.grad_values, args.grad_var, b, first, count, K, C, m.W, m.R, m.U, m.V, m.gW,
                   m.dR, m.dU);
    }
    d_ridge += solver.adjoint(count);
    store(args.d_queries, b, first, 0, count, C, m.gZ);
    sync();
  }
  d_ridge = team_sum(d_ridge);
  if (thread() == 0) store_scalar(args.d_ridge, b, 0, d_ridge);
  store(args.d_mean, b, 0, 0, K, C, m.dR);
  if (reads) store(args.d_cov, b, 0, 0, K, K, m.dU);
  return Outcome::done;
}

__device__ __noinline__ Outcome recall_robustly(const RecallArgs& args, int64_t b, int tile,
                                                Arena arena) {
  return recall_block<double>(args, b, tile, arena, kNoLimit);
}

__device__ __noinline__ Outcome adjoint_robustly(const RecallBackwardArgs& args, int64_t b,
                                                 int tile, Arena arena) {
  return adjoint_block<double>(args, b, tile, arena, kNoLimit);
}

// Every item or, where there are marks, those that have one.
__global__ void __launch_bounds__(256, 1)
    recall_kernel(const __grid_constant__ RecallArgs args, const __grid_constant__ BlockPlan plan,
                  char* workspace, const int* marks, int shares) {
  for_marked(
      marks, args.n.B,
      [&](int64_t b) {
        const Arena arena = enter(plan, workspace, b);
        Outcome outcome = Outcome::harder;
        if (args.mean.dtype == Dtype::float32) {
          outcome = recall_block<float>(args, b, plan.tile, arena, kEasy);
          sync();
        }
        if (outcome == Outcome::harder) outcome = recall_robustly(args, b, plan.tile, arena);
        if (outcome == Outcome::done) return;
        fill(args.weights_out, b, 0, 0, args.n.T, int(args.n.K), NAN);
        if (args.cov.data == nullptr) return;
        fill(args.values_out, b, 0, 0, args.n.T, int(args.n.C), NAN);
        fill(args.var_out, b, 0, 0, args.n.T, 1, NAN);
      },
      shares);
}

__global__ void __launch_bounds__(256, 1)
    recall_backward_kernel(const __grid_constant__ RecallBackwardArgs args,
                           const __grid_constant__ BlockPlan plan, char* workspace) {
  const int64_t b = blockIdx.x;
  const Arena arena = enter(plan, workspace, b);
  Outcome outcome = Outcome::harder;
  if (args.mean.dtype == Dtype::float32) {
    outcome = adjoint_block<float>(args, b, plan.tile, arena, kEasy);
    sync();
  }
  if (outcome == Outcome::harder) outcome = adjoint_robustly(args, b, plan.tile, arena);
  if (outcome == Outcome::done) return;
  fill(args.d_mean, b, 0, 0, args.n.K, int(args.n.C), NAN);
  if (args.cov.data != nullptr) fill(args.d_cov, b, 0, 0, args.n.K, int(args.n.K), NAN);
  fill(args.d_queries, b, 0, 0, args.n.T, int(args.n.C), NAN);
  if (thread() == 0) store_scalar(args.d_ridge, b, 0, NAN);
}

// The robust arithmetic takes the same buffers, twice as large.
template <class Args>
BlockPlan plan_of(const Args& args, const Device& device, bool backward) {
  const int K = int(args.n.K), C = int(args.n.C);
  const double T = double(args.n.T), n = K < C ? K : C, wide = K < C ? C : K;
  return plan_block(
      args.n, device, [&](Arena& arena, int tile) { Buffers<double>(arena, tile, K, C, backward); },
      [&](int tile) -> Work {
        const double build = n * n * (wide + 2 * n), query = K * (2.0 * C + K) + n * n;
        return {build + (backward ? 3 : 1) * T * query, n + (backward ? 14 : 8) * T / tile + 8};
      });
}

}  // namespace

size_t recall_workspace(const RecallArgs& args, const Device& device) {
  const BlockPlan plan = plan_of(args, device, false);
  return workspace_of(args.n, plan_small(args, plan.team, device), plan);
}

void recall(const RecallArgs& args, const Launch& to) {
  const BlockPlan plan = plan_of(args, to.device, false);
  const auto kernel = args.n.K <= 32 ? small_recall_kernel<32> : small_recall_kernel<64>;
  start_small(kernel, kSmallRecallThreads, plan_small(args, plan.team, to.device), recall_kernel,
              plan, args, to);
}

size_t recall_backward_workspace(const RecallBackwardArgs& args, const Device& device) {
  return workspace_of(args.n, plan_of(args, device, true));
}

void recall_backward(const RecallBackwardArgs& args, const Launch& to) {
  start(recall_backward_kernel, args, to, plan_of(args, to.device, true));
}

}  // namespace kanerva::cuda
