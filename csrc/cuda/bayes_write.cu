// bayes_write, forward: one launch. One block per memory; or per memory and block of columns, in
// which case the K x K half is done by each of them; or a team per memory. make_plan says when.
//
// Floor at (B, T, K, C) = (16, 32, 32, 100): 0.9 MB in and out, 0.3 us at 3 TB/s; 6 million
// multiply-adds, 0.2 us at 30 T/s; a launch is 2 to 3 us and the chain of L = 32 pivots, a barrier
// and a reciprocal each, 2 to 3 us: latency is what binds there. At B = 4096 it is the bytes, 75
// us. Not measured on a GPU yet.
//
// Arithmetic: the information form (information.cuh) for long episodes, float32 where it is easy,
// else float64; else chunks in float32 while max w'Uw / n is at most 16, else everything in float64
// in shorter chunks of the same shared memory, else (hardness above 1e11; float64 state: above 1e3)
// float64 steps on a square root.
#include "information.cuh"
#include "plan.cuh"

namespace kanerva::cuda {

namespace {

struct Plan {
  int steps, robust_steps;  // per chunk
  int long_steps;           // of the information form at a time; 0: it is not used
  int width, blocks;        // columns per block, blocks of columns per memory
  int team;                 // blocks of a team; 1: there are none
  int threads;
  size_t shared, global;  // bytes of scratch memory per block, or per team
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
// log evidence. Leaves the team synchronised.
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
      double hardness;
      if (!factor_chunk_sqrt(L, K, c, hardness)) return Outcome::failed;
    } else {
      double hardness;
      if (!factor_chunk(L, K, c, limit, hardness)) return Outcome::harder;
    }
    product<false, false>(L, n, K, c.W, m.R, [&](int i, int j, F x) { m.D(i, j) -= x; });
    sync();
    product<false, false>(L, n, L, c.V, m.D, [&](int i, int j, F x) {
      m.E(i, j) = x;
      squares += c.decay[i] * double(x) * double(x);
    });
    for (int t = thread(); t < L; t += threads())
      if (c.kept[t]) logs += log(double(c.pivots[t])) - log(c.decay[t]) + kLog2Pi;
    sync();
    product<true, false>(K, n, L, c.P, m.E, [&](int i, int j, F x) { m.R(i, j) += x; });
    if (!use_sqrt) downdate(L, K, c);
    sync();
  }
  squares = team_sum(squares);
  logs = team_sum(logs);
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
    outcome = write_block<double>(args, b, c0, n, plan.robust_steps, plan.width, arena, use_sqrt,
                                  use_sqrt ? kNoLimit : limit, stores_cov, evidence);
    sync();
  }
  return outcome;
}

// The whole episode in information form, where it serves.
__device__ __noinline__ Outcome write_long(const BayesWriteArgs& args, int64_t b, int64_t c0, int n,
                                           const Plan& plan, Arena arena, bool stores_cov,
                                           double& evidence) {
  if (!information_serves(args, kept_steps(args, b))) return Outcome::harder;
  const bool narrow_state = args.mean.dtype == Dtype::float32;
  const double limit = narrow_state ? kHardInformation32 : kHardInformation64;
  Outcome outcome = Outcome::harder;
  if (narrow_state && args.n.K >= kManySlots) {
    outcome = write_information<float>(args, b, c0, n, plan.long_steps, plan.width, arena, limit,
                                       kEasyInformation, stores_cov, evidence);
    sync();
  }
  if (outcome == Outcome::harder) {
    outcome = write_information<double>(args, b, c0, n, plan.long_steps, plan.width, arena, limit,
                                        kNoLimit, stores_cov, evidence);
    sync();
  }
  return outcome;
}

// teams: a TeamMemory for each memory, if teams work on them. partials: the evidence of every block
// where a memory has more than one, else null.
__global__ void __launch_bounds__(256, 1)
    write_kernel(const __grid_constant__ BayesWriteArgs args, const __grid_constant__ Plan plan,
                 TeamMemory* teams, char* workspace, double* partials) {
  const int64_t b = blockIdx.x;
  join_team(teams + b);
  const int64_t c0 = int64_t(blockIdx.y) * plan.width;
  const int n = int(c0 + plan.width <= args.n.C ? plan.width : args.n.C - c0);
  const bool first = blockIdx.y == 0;
  const Arena arena(block_memory(), plan.shared,
                    workspace + (b * plan.blocks + blockIdx.y) * int64_t(plan.global));
  double evidence = 0.0;
  Outcome outcome = Outcome::harder;
  if (plan.long_steps > 0) outcome = write_long(args, b, c0, n, plan, arena, first, evidence);
  if (outcome == Outcome::harder && args.mean.dtype == Dtype::float32 &&
      args.method != WriteMethod::sqrt && !is_small(args.n)) {
    outcome = write_block<float>(args, b, c0, n, plan.steps, plan.width, arena, false,
                                 kHardForFloat32Factors, first, evidence);
    sync();
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

// Multiply-adds of a memory's K x K half and of one column; barriers.
struct WriteWork {
  double half, column, barriers;
  double of(int64_t columns) const { return half + column * double(columns); }
};

WriteWork work_in_chunks(const Sizes& n, int L) {
  const double T = double(n.T), K = double(n.K);
  return {T * K * (2 * K + 2 * L), T * (2 * K + L), T * (1 + 10.0 / L)};
}

// float64 counts twice, as it takes twice as long.
WriteWork work_in_information_form(const BayesWriteArgs& args, int L) {
  const double T = double(args.n.T), K = double(args.n.K);
  const double price = args.mean.dtype == Dtype::float32 && args.n.K < kManySlots ? 2.0 : 1.0;
  return {price * K * K * (T + 4.5 * K), price * K * (T + 2 * K), 4 * T / L + 2 * K};
}

int64_t at_most(int64_t x, int64_t most) { return x < most ? x : most; }

// Bytes of scratch memory in all of the forms, of which `shared` are shared at most.
struct Layout {
  bool narrow_state;
  int K;

  template <class F>
  Arena chunk(size_t shared, int steps, int width) const {
    Arena arena(nullptr, shared, nullptr);
    Buffers<F>(arena, steps, K, width);
    return arena;
  }
  template <class F>
  Arena information(size_t shared, int steps, int width) const {
    Arena arena(nullptr, shared, nullptr);
    Information<F>(arena, steps, K, width);
    return arena;
  }
  // Of the chunks tried first.
  size_t need(int steps, int width) const {
    const size_t unlimited = size_t(1) << 60;
    return (narrow_state ? chunk<float>(unlimited, steps, width)
                         : chunk<double>(unlimited, steps, width))
        .shared_used();
  }
  size_t need_long(int steps, int width) const {
    return information<double>(size_t(1) << 60, steps, width).shared_used();
  }
  // What does not fit plan.shared: the most of any form.
  size_t global(const Plan& plan) const {
    size_t most = chunk<double>(plan.shared, plan.robust_steps, plan.width).global_used();
    const auto include = [&](const Arena& arena) {
      if (arena.global_used() > most) most = arena.global_used();
    };
    if (narrow_state) include(chunk<float>(plan.shared, plan.steps, plan.width));
    if (plan.long_steps > 0) {
      include(information<double>(plan.shared, plan.long_steps, plan.width));
      if (narrow_state) include(information<float>(plan.shared, plan.long_steps, plan.width));
    }
    return most;
  }
};

// Steps at a time of the information form where it serves and, if it was not asked for, takes fewer
// multiply-adds than chunks of `steps`; else 0.
int choose_information(const BayesWriteArgs& args, int width, int steps, int64_t long_steps) {
  if (!information_serves(args, args.n.T)) return 0;
  const int L = int(at_most(long_steps, args.n.T));
  const bool cheaper =
      work_in_information_form(args, L).of(width) < work_in_chunks(args.n, steps).of(width);
  return cheaper || args.method == WriteMethod::information ? L : 0;
}

Plan plan_blocks(const BayesWriteArgs& args, const Device& device) {
  const int64_t T = args.n.T > 0 ? args.n.T : 1;
  const int K = int(args.n.K), C = int(args.n.C);
  const Layout layout = {args.mean.dtype == Dtype::float32, K};
  const size_t limit = device.shared_per_block;

  Plan plan = {};
  plan.team = 1;
  plan.width = C;
  // Memories that do not fill the processors are split by columns.
  const int64_t share = (device.processors + args.n.B - 1) / (args.n.B > 0 ? args.n.B : 1);
  if (share > 1 && C > 64) {
    const int64_t width = ((C + share - 1) / share + 31) / 32 * 32;
    plan.width = int(width < 32 ? 32 : width < C ? width : C);
  }
  while (layout.need(int(at_most(16, T)), plan.width) > limit && plan.width > 32)
    plan.width = (plan.width / 2 + 31) / 32 * 32;
  plan.blocks = (C + plan.width - 1) / plan.width;
  // Long chunks where one block has a processor to itself, shorter ones where blocks share it.
  plan.steps = int(at_most(args.n.B * plan.blocks < 4 * device.processors ? 32 : 16, T));
  while (plan.steps > 8 && layout.need(plan.steps, plan.width) > limit)
    plan.steps = (plan.steps + 1) / 2;
  plan.long_steps = choose_information(args, plan.width, plan.steps, K < 32 ? 32 : at_most(K, 256));
  size_t shared = layout.need(plan.steps, plan.width);
  if (plan.long_steps > 0) {
    const size_t need = layout.need_long(plan.long_steps, plan.width);
    shared = shared < need ? need : shared;
  }
  plan.shared = shared < limit ? shared : limit;

  plan.robust_steps = plan.steps < 16 ? plan.steps : 16;
  while (plan.robust_steps > 4 &&
         layout.chunk<double>(plan.shared, plan.robust_steps, plan.width).global_used() > 0)
    plan.robust_steps = (plan.robust_steps + 1) / 2;
  plan.global = layout.global(plan);
  plan.threads = threads_for(int64_t(K) * (plan.width > K ? plan.width : K));
  return plan;
}

// All matrices in the workspace.
Plan plan_team(const BayesWriteArgs& args, int blocks) {
  const int64_t T = args.n.T > 0 ? args.n.T : 1;
  Plan plan = {};
  plan.team = blocks;
  plan.width = int(args.n.C);
  plan.blocks = 1;
  plan.steps = plan.robust_steps = int(at_most(64, T));
  plan.long_steps = choose_information(args, plan.width, plan.steps, 1024);
  plan.threads = kTileThreads;
  plan.global = Layout{args.mean.dtype == Dtype::float32, int(args.n.K)}.global(plan);
  return plan;
}

WriteWork work_of(const BayesWriteArgs& args, const Plan& plan) {
  return plan.long_steps > 0 ? work_in_information_form(args, plan.long_steps)
                             : work_in_chunks(args.n, plan.steps);
}

// Blocks on columns run side by side, each with the whole K x K half; a team shares everything.
Plan make_plan(const BayesWriteArgs& args, const Device& device) {
  const Plan alone = plan_blocks(args, device);
  const int blocks = most_blocks(args.n, device);
  const Plan team = plan_team(args, blocks);
  const WriteWork work = work_of(args, team);
  const bool pays = team_pays({work.of(args.n.C), work.barriers}, blocks,
                              work_of(args, alone).of(alone.width), device);
  return pays ? team : alone;
}

size_t teams_size(const BayesWriteArgs& args, const Plan& plan) {
  return plan.team > 1 ? size_t(args.n.B) * sizeof(TeamMemory) : 0;
}

size_t partials_size(const BayesWriteArgs& args, const Plan& plan) {
  if (plan.blocks == 1) return 0;
  return (size_t(args.n.B * plan.blocks) * sizeof(double) + 15) / 16 * 16;
}

}  // namespace

size_t bayes_write_workspace(const BayesWriteArgs& args, const Device& device) {
  const Plan plan = make_plan(args, device);
  return teams_size(args, plan) + partials_size(args, plan) +
         size_t(args.n.B * plan.blocks) * plan.global;
}

void bayes_write(const BayesWriteArgs& args, const Launch& to) {
  const Plan plan = make_plan(args, to.device);
  // One of the two at most.
  const size_t of_teams = teams_size(args, plan), of_partials = partials_size(args, plan);
  char* workspace = static_cast<char*>(to.workspace);
  TeamMemory* teams = reinterpret_cast<TeamMemory*>(workspace);
  double* partials = of_partials > 0 ? reinterpret_cast<double*>(workspace) : nullptr;
  if (of_teams > 0) clear(teams, of_teams, to.stream);
  launch(write_kernel, {args.n.B, plan.blocks, plan.team}, plan.threads,
         shared_bytes(plan.team, plan.shared), to.stream, args, plan, teams,
         workspace + of_teams + of_partials, partials);
  if (partials != nullptr)
    launch(finish_kernel, {args.n.B}, 256, 0, to.stream, args, plan.blocks,
           static_cast<const double*>(partials));
}

}  // namespace kanerva::cuda
