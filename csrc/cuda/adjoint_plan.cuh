// How the adjoint of a write is cut into chunks and teams, and what a block or team does for an
// item: for bayes_write_backward and causal_scan_backward.
#pragma once

#include <cmath>

#include "marks.cuh"
#include "stationary_adjoint.cuh"

namespace kanerva::cuda {

// Per chunk on a root, where the conditioning is worst: rounding is amplified by what F^-1 of a
// chunk holds, and 4 steps miss 1e-10 at a hardness of 1e4.
constexpr int kRootSteps = 3;

// What the plan of a call follows from.
struct AdjointCall {
  Sizes n;
  int64_t sequences = 1;   // that the T steps of a row are packed from
  bool in_float32 = true;  // whether that is tried first
  bool reads = false;
  int64_t most_steps = 32;  // of a chunk
  bool moves = false;       // whether the memory does,
  bool identity = false;    // and its stationary covariance is that
  // Per chunk of the last form.
  int root_steps() const { return moves ? 1 : kRootSteps; }
};

struct AdjointPlan {
  int steps, robust_steps, root_steps;  // per chunk
  int threads;
  size_t shared, scratch;  // bytes per block: shared, and of the workspace for what does not fit
  int team;                // blocks per memory
  bool in_clusters;        // whether teams are clusters
  size_t teams;            // bytes at the start of the workspace, for the teams
  // Bytes of the states that are kept, behind the scratch of all items: those of a row, and where
  // in them those of a sequence start.
  int64_t states_of_row, states_per_step, states_per_item;
  __host__ __device__ int64_t states_at(int64_t first, int64_t sequence) const {
    return (first * states_per_step + 15) / 16 * 16 + sequence * states_per_item;
  }
};

template <class F>
Arena adjoint_layout(const AdjointCall& call, size_t shared, int steps, bool robust) {
  Arena arena(nullptr, shared, nullptr);
  const int K = int(call.n.K), C = int(call.n.C);
  if (call.moves) {
    StationaryAdjointBuffers<F>(arena, steps, K, C, call.reads, call.identity);
  } else {
    AdjointBuffers<F>(arena, steps, K, C, call.reads, robust);
  }
  return arena;
}

// Makes room for the states of chunks of `steps`. Sequences keep 2 sqrt(c) + 2 of them at most for
// c chunks, and 3 (c - 1); what is given to each is linear in its steps, so that its place follows
// from its bounds: the tangent at the mean length, or the latter bound.
inline void make_room(const AdjointCall& call, int steps, size_t element, AdjointPlan& plan) {
  const auto at_least = [](int64_t& x, int64_t y) { x = x > y ? x : y; };
  const int64_t state = call.n.K * (call.n.K + call.n.C) * int64_t(element);
  if (call.sequences == 1) {
    at_least(plan.states_per_item, Segments(call.n.T, steps).states() * state);
    return;
  }
  const double mean = double(call.n.T) / double(call.sequences) / steps;  // chunks of a sequence
  const bool is_short = mean < 2.0;
  const double root = is_short ? 0.0 : std::sqrt(mean);
  const double per_chunk = is_short ? 3.0 : 1.0 / root, rest = is_short ? 0.0 : root + 3.0;
  at_least(plan.states_per_step, int64_t(std::ceil(double(state) * per_chunk / steps)));
  at_least(plan.states_per_item, int64_t(std::ceil(double(state) * rest)));
}

// `plan` with scratch and states filled in.
inline AdjointPlan with_workspace(const AdjointCall& call, AdjointPlan plan) {
  if (call.in_float32) {
    plan.scratch = adjoint_layout<float>(call, plan.shared, plan.steps, false).global_used();
    make_room(call, plan.steps, sizeof(float), plan);
  }
  const size_t robust =
      adjoint_layout<double>(call, plan.shared, plan.robust_steps, true).global_used();
  plan.scratch = plan.scratch > robust ? plan.scratch : robust;
  make_room(call, plan.robust_steps, sizeof(double), plan);
  make_room(call, plan.root_steps, sizeof(double), plan);
  plan.states_per_item = (plan.states_per_item + 31) / 16 * 16;  // steps are rounded up by 15
  plan.states_of_row = plan.states_at(call.n.T, call.sequences);
  return plan;
}

inline AdjointPlan plan_alone(const AdjointCall& call, const Device& device) {
  const size_t limit = device.shared_per_block, unlimited = size_t(1) << 60;
  const auto need = [&](int steps) {
    return (call.in_float32 ? adjoint_layout<float>(call, unlimited, steps, false)
                            : adjoint_layout<double>(call, unlimited, steps, true))
        .shared_used();
  };
  const int64_t most = call.most_steps < 16 ? call.most_steps : 16;
  AdjointPlan plan = {};
  plan.team = 1;
  plan.steps = int(call.n.T < 1 ? 1 : call.n.T < most ? call.n.T : most);
  while (plan.steps > 8 && need(plan.steps) > limit) plan.steps = (plan.steps + 1) / 2;
  plan.shared = need(plan.steps) < limit ? need(plan.steps) : limit;
  plan.robust_steps = plan.steps;
  while (plan.robust_steps > 4 &&
         adjoint_layout<double>(call, plan.shared, plan.robust_steps, true).global_used() > 0)
    plan.robust_steps = (plan.robust_steps + 1) / 2;
  plan.root_steps = plan.robust_steps < call.root_steps() ? plan.robust_steps : call.root_steps();
  plan.threads = threads_for(call.n.K * (call.n.C > call.n.K ? call.n.C : call.n.K));
  return with_workspace(call, plan);
}

// All matrices in the workspace.
inline AdjointPlan plan_team(const AdjointCall& call, int blocks) {
  const int64_t most = call.most_steps < 32 ? call.most_steps : 32;
  AdjointPlan plan = {};
  plan.team = blocks;
  plan.teams = size_t(call.n.B) * sizeof(TeamMemory);
  plan.steps = plan.robust_steps = int(call.n.T < 1 ? 1 : call.n.T < most ? call.n.T : most);
  plan.root_steps = plan.steps < call.root_steps() ? plan.steps : call.root_steps();
  plan.threads = kTileThreads;
  return with_workspace(call, plan);
}

// Multiply-adds of a memory. A forward pass is in it.
inline double adjoint_operations(const AdjointCall& call) {
  const double T = double(call.n.T) / double(call.sequences), K = double(call.n.K);
  const double C = double(call.n.C);
  return T * K * (5 * K + 8 * C + (call.reads ? 2 * K + 3 * C : 0.0));
}

inline AdjointPlan plan_adjoint(const AdjointCall& call, const Device& device) {
  const double T = double(call.n.T) / double(call.sequences);
  const double operations = adjoint_operations(call);
  AdjointPlan team = plan_team(call, 1);
  const double barriers = T * (2 + (call.reads ? 38.0 : 30.0) / team.steps);
  team.team = choose_team(call.n, {operations, barriers}, operations, device);
  team.in_clusters = is_cluster(device, team.team);
  return team.team > 1 ? team : plan_alone(call, device);
}

inline size_t workspace_of(const AdjointCall& call, const AdjointPlan& plan) {
  const int64_t rows = call.n.B / call.sequences;
  return plan.teams + size_t(call.n.B) * plan.scratch + size_t(rows * plan.states_of_row);
}

template <class Args, class... More>
void start_adjoint(void (*kernel)(Args, AdjointPlan, char*, More...), const Args& args,
                   const AdjointPlan& plan, const Launch& to, typename Same<More>::type... more) {
  if (plan.teams > 0 && !plan.in_clusters) clear(to.workspace, plan.teams, to.stream);
  launch(kernel, {args.n.B, 1, plan.team, plan.in_clusters}, plan.threads,
         shared_bytes(plan.team, plan.shared), to.stream, args, plan,
         static_cast<char*>(to.workspace), more...);
}

using MarkedBackwardKernel = void (*)(BayesWriteBackwardArgs, AdjointPlan, char*, const int*, int);

// The same for the memories that are marked, by `shares` marks each: by the blocks that there are
// processors for, or by teams.
inline void start_marked(MarkedBackwardKernel kernel, const BayesWriteBackwardArgs& args,
                         const AdjointPlan& plan, Launch to, char* workspace, const int* marks,
                         int shares) {
  to.workspace = workspace;
  if (plan.team > 1) return start_adjoint(kernel, args, plan, to, marks, shares);
  launch(kernel, {blocks_for_marked(args.n.B, to.device)}, plan.threads, plan.shared, to.stream,
         args, plan, workspace, marks, shares);
}

// The gradients of item b by its block or team, in arithmetic F. It finds its item anew: what would
// be kept while another form runs would be spilled.
template <class F, class Args>
__device__ __noinline__ Outcome adjoint_in(const Args& args, int64_t b, const AdjointPlan& plan,
                                           char* workspace, bool use_sqrt) {
  constexpr bool robust = sizeof(F) == 8;
  const Item item = item_of(args, b);
  if (!item.valid) return Outcome::failed;
  char* const scratch = workspace + plan.teams;
  const Arena arena(block_memory(), plan.shared, scratch + item.state * int64_t(plan.scratch));
  int64_t sequence = 0;
  if constexpr (kReads<Args>) sequence = item.state % args.packing.count;
  char* const states = scratch + args.n.B * int64_t(plan.scratch) + item.row * plan.states_of_row +
                       plan.states_at(item.first, sequence);
  const double limit = !robust    ? kHardForFloat32Factors
                       : use_sqrt ? kNoLimit
                                  : cholesky_limit(args.mean.dtype);
  const int steps = !robust ? plan.steps : use_sqrt ? plan.root_steps : plan.robust_steps;
  const Outcome outcome =
      Adjoint<F, Args>(args, item, steps, arena, states, robust, use_sqrt, limit).run();
  sync();
  return outcome;
}

// The gradients of item b = NaN.
template <class Args>
__device__ __noinline__ void fill_gradients_with_nan(const Args& args, int64_t b) {
  const Item item = item_of(args, b);
  const int K = int(args.n.K), C = int(args.n.C);
  const auto fill_steps = [&](const View& v, int n) {
    fill(v, item.row, item.first, 0, item.steps, n, NAN);
  };
  fill(args.d_mean, item.state, 0, 0, K, C, NAN);
  fill(args.d_cov, item.state, 0, 0, K, K, NAN);
  fill_steps(args.d_weights, K);
  fill_steps(args.d_values, C);
  fill_steps(args.d_noise_var, 1);
  if constexpr (kReads<Args>) fill_steps(args.d_queries, K);
  if (args.d_decay.data != nullptr) fill_steps(args.d_decay, 1);
}

// The gradients of item b by its block or team.
template <class Args>
__device__ inline void adjoint_of_item(const Args& args, int64_t b, const AdjointPlan& plan,
                                       char* workspace, bool in_float32, bool only_sqrt) {
  Outcome outcome = Outcome::harder;
  if (in_float32) outcome = adjoint_in<float>(args, b, plan, workspace, false);
  if (outcome == Outcome::harder && !only_sqrt)
    outcome = adjoint_in<double>(args, b, plan, workspace, false);
  if (outcome == Outcome::harder) outcome = adjoint_in<double>(args, b, plan, workspace, true);
  if (outcome != Outcome::done) fill_gradients_with_nan(args, b);
}

}  // namespace kanerva::cuda
