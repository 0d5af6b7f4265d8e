// bayes_write, forward: one launch; one block per memory, or per memory and block of columns, in
// which case the K x K half is done by each of them.
//
// Floor at (B, T, K, C) = (16, 32, 32, 100): 0.9 MB in and out, 0.3 us at 3 TB/s; 6 million
// multiply-adds, 0.2 us at 30 T/s; a launch is 2 to 3 us and the chain of L = 32 pivots, a barrier
// and a reciprocal each, 2 to 3 us: latency is what binds there. At B = 4096 it is the bytes, 75
// us. Not measured on a GPU yet.
//
// Arithmetic: float32 while max w'Uw / n is at most 16, else everything in float64 in shorter
// chunks of the same shared memory, else (hardness above 1e11; float64 state: above 1e3) float64
// steps on a square root. method = "information" is served by chunks.
#include "launchers.h"
#include "write_chunk.cuh"

namespace kanerva::cuda {

namespace {

struct Plan {
  int steps, robust_steps;  // per chunk
  int width, blocks;        // columns per block, blocks per memory
  int threads;
  size_t shared, global;  // bytes per block
};

template <class F>
struct Buffers {
  Chunk<F> chunk;
  Mat<F> D, E, R;  // L x width, L x width, K x width

  __host__ __device__ Buffers(Arena& arena, int L, int K, int width)
      : chunk(arena, L, K),
        D(arena.matrix<F>(L, width)),
        E(arena.matrix<F>(L, width)),
        R(arena.matrix<F>(K, width)) {}
};

// The write of one item's columns [c0, c0 + n) in arithmetic F. `evidence` is their share of the
// log evidence. Leaves the block synchronised.
template <class F>
__device__ Outcome write_block(const BayesWriteArgs& args, int64_t b, int64_t c0, int n, int steps,
                               int width, Arena arena, bool use_sqrt, double limit, bool stores_cov,
                               double& evidence) {
  const int K = int(args.n.K);
  const Buffers<F> m(arena, steps, K, width);
  const Chunk<F>& c = m.chunk;
  if (use_sqrt) {
    if (!load_root(args.cov, b, K, c.U, m.R.data)) return Outcome::failed;
  } else {
    load(args.cov, b, 0, 0, K, K, c.U);
  }
  load(args.mean, b, 0, c0, K, n, m.R);
  double squares = 0.0, logs = 0.0;  // of this thread
  for (int64_t first = 0; first < args.n.T; first += steps) {
    const int L = int(first + steps <= args.n.T ? steps : args.n.T - first);
    if (!load_chunk(args, b, first, L, c)) return Outcome::failed;
    load(args.values, b, first, c0, L, n, m.D, c.kept);
    if (use_sqrt) {
      if (!sqrt_step(K, c)) return Outcome::failed;
    } else {
      double hardness;
      if (!factor_chunk(L, K, c, limit, hardness)) return Outcome::harder;
    }
    product<false, false>(L, n, K, c.W, m.R, [&](int i, int j, F x) { m.D(i, j) -= x; });
    __syncthreads();
    product<false, false>(L, n, L, c.V, m.D, [&](int i, int j, F x) {
      m.E(i, j) = x;
      squares += c.decay[i] * double(x) * double(x);
    });
    for (int t = thread(); t < L; t += threads())
      if (c.kept[t]) logs += log(double(c.pivots[t])) - log(c.decay[t]) + kLog2Pi;
    __syncthreads();
    product<true, false>(K, n, L, c.P, m.E, [&](int i, int j, F x) { m.R(i, j) += x; });
    if (!use_sqrt) downdate(L, K, c);
    __syncthreads();
  }
  squares = block_sum(squares, c.room);
  logs = block_sum(logs, c.room);
  evidence = -0.5 * (squares + double(n) * logs);
  // Values that are not finite, or whose squares overflow in F, show here.
  if (!(evidence < kInfinite && evidence > -kInfinite))
    return limit == kNoLimit ? Outcome::failed : Outcome::harder;
  store(args.mean_out, b, 0, c0, K, n, m.R);
  if (stores_cov && use_sqrt) {
    with_type(args.cov_out, [&](auto* data) {
      product<true, false>(K, K, K, c.U, c.U, [&](int i, int j, F x) {
        data[offset(args.cov_out, b, i, j)] =
            narrow<std::remove_reference_t<decltype(*data)>>(double(x));
      });
    });
  } else if (stores_cov) {
    store(args.cov_out, b, 0, 0, K, K, c.U);
  }
  return Outcome::done;
}

// What the fast arithmetic left undone. Not inlined: it must not take registers from the fast path.
__device__ __noinline__ Outcome write_robustly(const BayesWriteArgs& args, int64_t b, int64_t c0,
                                               int n, const Plan& plan, Arena arena,
                                               bool stores_cov, double& evidence) {
  const double limit = args.mean.dtype == Dtype::float32 ? kHardForCholesky : kHardForFloat64;
  Outcome outcome = Outcome::harder;
  for (int step = args.method == WriteMethod::sqrt; step < 2 && outcome == Outcome::harder;
       ++step) {
    const bool use_sqrt = step == 1;
    outcome =
        write_block<double>(args, b, c0, n, use_sqrt ? 1 : plan.robust_steps, plan.width, arena,
                            use_sqrt, use_sqrt ? kNoLimit : limit, stores_cov, evidence);
    __syncthreads();
  }
  return outcome;
}

// partials: the evidence of every block where a memory has more than one, else null.
__global__ void __launch_bounds__(256, 1)
    write_kernel(const __grid_constant__ BayesWriteArgs args, const __grid_constant__ Plan plan,
                 char* workspace, double* partials) {
  const int64_t b = blockIdx.x;
  const int64_t c0 = int64_t(blockIdx.y) * plan.width;
  const int n = int(c0 + plan.width <= args.n.C ? plan.width : args.n.C - c0);
  const bool first = blockIdx.y == 0;
  const Arena arena(dynamic_shared(), plan.shared,
                    workspace + (b * plan.blocks + blockIdx.y) * int64_t(plan.global));
  double evidence = 0.0;
  Outcome outcome = Outcome::harder;
  if (args.mean.dtype == Dtype::float32 && args.method != WriteMethod::sqrt && !is_small(args.n)) {
    outcome = write_block<float>(args, b, c0, n, plan.steps, plan.width, arena, false,
                                 kHardForFloat32Factors, first, evidence);
    __syncthreads();
  }
  if (outcome == Outcome::harder)
    outcome = write_robustly(args, b, c0, n, plan, arena, first, evidence);
  if (outcome != Outcome::done) {
    evidence = NAN;
    fill(args.mean_out, b, 0, c0, args.n.K, n, NAN);
    if (first) fill(args.cov_out, b, 0, 0, args.n.K, int(args.n.K), NAN);
  }
  if (thread() == 0) {
    if (partials != nullptr) {
      partials[b * plan.blocks + blockIdx.y] = evidence;
    } else {
      store_scalar(args.log_evidence, b, 0, evidence);
    }
  }
}

// Adds up the evidence of a memory's blocks; one that failed makes the item NaN.
__global__ void __launch_bounds__(256, 1)
    finish_kernel(const __grid_constant__ BayesWriteArgs args, int blocks, const double* partials) {
  const int64_t b = blockIdx.x;
  double evidence = 0.0;
  for (int i = 0; i < blocks; ++i) evidence += partials[b * blocks + i];
  if (!(evidence < kInfinite && evidence > -kInfinite)) {
    evidence = NAN;
    fill(args.mean_out, b, 0, 0, args.n.K, int(args.n.C), NAN);
    fill(args.cov_out, b, 0, 0, args.n.K, int(args.n.K), NAN);
  }
  if (thread() == 0) store_scalar(args.log_evidence, b, 0, evidence);
}

template <class F>
Arena layout(size_t shared, int steps, int K, int width) {
  Arena arena(nullptr, shared, nullptr);
  Buffers<F>(arena, steps, K, width);
  return arena;
}

Plan make_plan(const BayesWriteArgs& args, const Device& device) {
  const int64_t T = args.n.T > 0 ? args.n.T : 1;
  const int K = int(args.n.K), C = int(args.n.C);
  const bool narrow_state = args.mean.dtype == Dtype::float32;
  const size_t limit = device.shared_per_block, unlimited = size_t(1) << 60;
  const auto need = [&](int steps, int width) {
    return (narrow_state ? layout<float>(unlimited, steps, K, width)
                         : layout<double>(unlimited, steps, K, width))
        .shared_used();
  };
  const auto up_to_T = [&](int steps) { return int(steps < T ? steps : T); };

  Plan plan = {};
  plan.width = C;
  // Memories that do not fill the processors are split by columns.
  const int64_t share = (device.processors + args.n.B - 1) / (args.n.B > 0 ? args.n.B : 1);
  if (share > 1 && C > 64) {
    const int64_t width = ((C + share - 1) / share + 31) / 32 * 32;
    plan.width = int(width < 32 ? 32 : width < C ? width : C);
  }
  while (need(up_to_T(16), plan.width) > limit && plan.width > 32)
    plan.width = (plan.width / 2 + 31) / 32 * 32;
  plan.blocks = (C + plan.width - 1) / plan.width;
  // Long chunks where one block has a processor to itself, shorter ones where blocks share it.
  plan.steps = up_to_T(args.n.B * plan.blocks < 4 * device.processors ? 32 : 16);
  while (plan.steps > 8 && need(plan.steps, plan.width) > limit) plan.steps = (plan.steps + 1) / 2;
  plan.shared = need(plan.steps, plan.width);
  if (plan.shared > limit) plan.shared = limit;

  plan.robust_steps = plan.steps < 16 ? plan.steps : 16;
  while (plan.robust_steps > 4 &&
         layout<double>(plan.shared, plan.robust_steps, K, plan.width).global_used() > 0)
    plan.robust_steps = (plan.robust_steps + 1) / 2;
  const size_t fast =
      narrow_state ? layout<float>(plan.shared, plan.steps, K, plan.width).global_used() : 0;
  const size_t robust = layout<double>(plan.shared, plan.robust_steps, K, plan.width).global_used();
  plan.global = fast > robust ? fast : robust;
  const int64_t tiles = int64_t(K) * (plan.width > K ? plan.width : K) / 16;
  plan.threads = tiles <= 64 ? 64 : tiles <= 256 ? 128 : 256;
  return plan;
}

size_t partials_size(const BayesWriteArgs& args, const Plan& plan) {
  if (plan.blocks == 1) return 0;
  return (size_t(args.n.B * plan.blocks) * sizeof(double) + 15) / 16 * 16;
}

}  // namespace

size_t bayes_write_workspace(const BayesWriteArgs& args, const Device& device) {
  const Plan plan = make_plan(args, device);
  return partials_size(args, plan) + size_t(args.n.B * plan.blocks) * plan.global;
}

void bayes_write(const BayesWriteArgs& args, const Launch& to) {
  const Plan plan = make_plan(args, to.device);
  const size_t head = partials_size(args, plan);
  char* workspace = static_cast<char*>(to.workspace);
  double* partials = head > 0 ? reinterpret_cast<double*>(workspace) : nullptr;
  launch(write_kernel, args.n.B, plan.blocks, plan.threads, plan.shared, to.stream, args, plan,
         workspace + head, partials);
  if (partials != nullptr)
    launch(finish_kernel, args.n.B, 1, 256, 0, to.stream, args, plan.blocks,
           static_cast<const double*>(partials));
}

}  // namespace kanerva::cuda
