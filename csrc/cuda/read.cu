// read, forward and backward: values = W R, var_t = w_t'U w_t; one block or team per memory,
// queries in tiles.
//
// Floor at B = 16, T = K = 32, C = 100: 0.7 MB in and out, 0.2 us at 3 TB/s; 2 million
// multiply-adds; launch 2 to 3 us binds.
#include "small_read.cuh"
#include "spd.cuh"

namespace kanerva::cuda {

namespace {

template <class F>
struct Buffers {
  Mat<F> W, WU;  // tile x K
  Mat<F> V;      // tile x C
  Mat<F> U, R;   // K x K, K x C
  Mat<F> dU, dR;

  __host__ __device__ Buffers(Arena& arena, int tile, int K, int C, bool backward)
      : W(arena.matrix<F>(tile, K)),
        WU(arena.matrix<F>(tile, K)),
        V(arena.matrix<F>(tile, C)),
        U(arena.matrix<F>(K, K)),
        R(arena.matrix<F>(K, C)),
        dU(backward ? arena.matrix<F>(K, K) : Mat<F>{nullptr, 0}),
        dR(backward ? arena.matrix<F>(K, C) : Mat<F>{nullptr, 0}) {}
};

template <class F>
__device__ void read_block(const ReadArgs& args, int64_t b, const BlockPlan& plan,
                           char* workspace) {
  const int64_t T = args.n.T;
  const int K = int(args.n.K), C = int(args.n.C);
  Arena arena = enter(plan, workspace, b);
  const Buffers<F> m(arena, plan.tile, K, C, false);
  load(args.mean, b, 0, 0, K, C, m.R);
  load(args.cov, b, 0, 0, K, K, m.U);
  sync();
  bool bad = not_finite(K, C, m.R);
  bad = not_finite(K, K, m.U) || bad;
  for (int64_t first = 0; first < T && !bad; first += plan.tile) {
    const int count = int(first + plan.tile <= T ? plan.tile : T - first);
    load(args.weights, b, first, 0, count, K, m.W);
    sync();
    bad = not_finite(count, K, m.W);
    product<false, false>(count, C, K, m.W, m.R, [&](int i, int j, F x) { m.V(i, j) = x; });
    product<false, false>(count, K, K, m.W, m.U, [&](int i, int j, F x) { m.WU(i, j) = x; });
    sync();
    store(args.values_out, b, first, 0, count, C, m.V);
    store_variances(args.var_out, b, first, count, K, m.W, m.WU);
    sync();
  }
  if (!bad) return;
  fill(args.values_out, b, 0, 0, T, C, NAN);
  fill(args.var_out, b, 0, 0, T, 1, NAN);
  sync();
}

// Every item or, where there are marks, those that have one.
template <class F>
__global__ void __launch_bounds__(256, 1)
    read_kernel(const __grid_constant__ ReadArgs args, const __grid_constant__ BlockPlan plan,
                char* workspace, const int* marks, int shares) {
  for_marked(marks, args.n.B, [&](int64_t b) { read_block<F>(args, b, plan, workspace); }, shares);
}

template <class F>
__device__ void read_adjoint_block(const ReadBackwardArgs& args, int64_t b, const BlockPlan& plan,
                                   char* workspace) {
  const int64_t T = args.n.T;
  const int K = int(args.n.K), C = int(args.n.C);
  Arena arena = enter(plan, workspace, b);
  const Buffers<F> m(arena, plan.tile, K, C, true);
  load(args.mean, b, 0, 0, K, C, m.R);
  load_covariance(args.cov, b, K, m.U);
  each(K, K, [&](int i, int j) { m.dU(i, j) = F(0); });
  each(K, C, [&](int i, int j) { m.dR(i, j) = F(0); });
  for (int64_t first = 0; first < T; first += plan.tile) {
    const int count = int(first + plan.tile <= T ? plan.tile : T - first);
    load(args.weights, b, first, 0, count, K, m.W);
    each(count, K, [&](int i, int j) { m.WU(i, j) = F(0); });  // the gradient of W
    sync();
    read_adjoint(args.grad_values, args.grad_var, b, first, count, K, C, m.W, m.R, m.U, m.V, m.WU,
                 m.dR, m.dU);
    store(args.d_weights, b, first, 0, count, K, m.WU);
    sync();
  }
  sync();
  store(args.d_mean, b, 0, 0, K, C, m.dR);
  store(args.d_cov, b, 0, 0, K, K, m.dU);
  sync();
}

// As read_kernel.
template <class F>
__global__ void __launch_bounds__(256, 1)
    read_backward_kernel(const __grid_constant__ ReadBackwardArgs args,
                         const __grid_constant__ BlockPlan plan, char* workspace, const int* marks,
                         int shares) {
  for_marked(
      marks, args.n.B, [&](int64_t b) { read_adjoint_block<F>(args, b, plan, workspace); }, shares);
}

template <class Args>
BlockPlan plan_of(const Args& args, const Device& device, bool backward) {
  const int K = int(args.n.K), C = int(args.n.C);
  const double T = double(args.n.T), columns = double(K) + double(C);
  return plan_block(
      args.n, device,
      [&](Arena& arena, int tile) {
        if (args.mean.dtype == Dtype::float32) {
          Buffers<float>(arena, tile, K, C, backward);
        } else {
          Buffers<double>(arena, tile, K, C, backward);
        }
      },
      [&](int tile) -> Work { return {(backward ? 2 : 1) * T * K * columns, 5 * T / tile + 4}; });
}

}  // namespace

size_t read_workspace(const ReadArgs& args, const Device& device) {
  const BlockPlan plan = plan_of(args, device, false);
  return workspace_of(args.n, plan_small(args, plan.team, device), plan);
}

void read(const ReadArgs& args, const Launch& to) {
  const BlockPlan plan = plan_of(args, to.device, false);
  start_small(args.n.K <= 32 ? small_read_kernel<32> : small_read_kernel<64>, 256,
              plan_small(args, plan.team, to.device),
              args.mean.dtype == Dtype::float32 ? read_kernel<float> : read_kernel<double>, plan,
              args, to);
}

size_t read_backward_workspace(const ReadBackwardArgs& args, const Device& device) {
  const BlockPlan plan = plan_of(args, device, true);
  return workspace_of(args.n, plan_small(args, plan.team, device), plan);
}

void read_backward(const ReadBackwardArgs& args, const Launch& to) {
  const BlockPlan plan = plan_of(args, to.device, true);
  start_small(args.n.K <= 32 ? small_read_backward_kernel<32> : small_read_backward_kernel<64>, 256,
              plan_small(args, plan.team, to.device),
              args.mean.dtype == Dtype::float32 ? read_backward_kernel<float>
                                                : read_backward_kernel<double>,
              plan, args, to);
}

}  // namespace kanerva::cuda
