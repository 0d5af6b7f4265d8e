// bayes_write, backward: one launch, one block or team per memory. The closed-form adjoint of
// ../core/bayes_write_backward.h, chunk by chunk from the last to the first; the states at the
// starts of the chunks are computed again, about twice the square root of their number kept in the
// workspace.
//
// Floor at (16, 32, 32, 100): 2 MB in and out, 0.7 us at 3 TB/s; 20 million multiply-adds, 0.7 us
// at 30 T/s; launch 2 to 3 us, chains of pivots as in bayes_write.cu: latency binds there. Not
// measured on a GPU yet.
//
// Arithmetic as in bayes_write.cu; gradients of decays cancel and are never done in float32.
#include "plan.cuh"
#include "write_adjoint.cuh"

namespace kanerva::cuda {

namespace {

// Per chunk on a root, where the conditioning is worst: rounding is amplified by what F^-1 of a
// chunk holds, and 4 steps miss 1e-10 at a hardness of 1e4.
constexpr int kRootSteps = 3;

struct Plan {
  int steps, robust_steps, root_steps;  // per chunk
  int threads;
  size_t shared, scratch;  // bytes per block: shared, and of the workspace for what does not fit
  size_t states;           // bytes per block for the states that are kept
  int team;                // blocks per memory
  size_t teams;            // bytes at the start of the workspace, for the teams
};

__device__ __noinline__ Outcome adjoint_robustly(const BayesWriteBackwardArgs& args, int64_t b,
                                                 const Plan& plan, Arena arena, char* states) {
  double* kept = reinterpret_cast<double*>(states);
  const double limit = args.mean.dtype == Dtype::float32 ? kHardForCholesky : kHardForFloat64;
  Outcome outcome = Outcome::harder;
  for (int step = args.method == WriteMethod::sqrt; step < 2 && outcome == Outcome::harder;
       ++step) {
    const bool use_sqrt = step == 1;
    outcome = Adjoint<double>(args, b, use_sqrt ? plan.root_steps : plan.robust_steps, arena, kept,
                              true, use_sqrt, use_sqrt ? kNoLimit : limit)
                  .run();
    sync();
  }
  return outcome;
}

__global__ void __launch_bounds__(256, 1)
    backward_kernel(const __grid_constant__ BayesWriteBackwardArgs args,
                    const __grid_constant__ Plan plan, char* workspace) {
  const int64_t b = blockIdx.x;
  join_team(reinterpret_cast<TeamMemory*>(workspace) + b);
  char* const own = workspace + plan.teams + b * int64_t(plan.scratch + plan.states);
  const Arena arena(block_memory(), plan.shared, own);
  char* const states = own + plan.scratch;
  Outcome outcome = Outcome::harder;
  if (args.mean.dtype == Dtype::float32 && args.method != WriteMethod::sqrt &&
      args.decay.data == nullptr && !is_small(args.n)) {
    outcome = Adjoint<float>(args, b, plan.steps, arena, reinterpret_cast<float*>(states), false,
                             false, kHardForFloat32Factors)
                  .run();
    sync();
  }
  if (outcome == Outcome::harder) outcome = adjoint_robustly(args, b, plan, arena, states);
  if (outcome == Outcome::done) return;
  const int K = int(args.n.K), C = int(args.n.C);
  fill(args.d_mean, b, 0, 0, K, C, NAN);
  fill(args.d_cov, b, 0, 0, K, K, NAN);
  fill(args.d_weights, b, 0, 0, args.n.T, K, NAN);
  fill(args.d_values, b, 0, 0, args.n.T, C, NAN);
  fill(args.d_noise_var, b, 0, 0, args.n.T, 1, NAN);
  if (args.d_decay.data != nullptr) fill(args.d_decay, b, 0, 0, args.n.T, 1, NAN);
}

template <class F>
Arena layout(size_t shared, int steps, int K, int C, bool robust) {
  Arena arena(nullptr, shared, nullptr);
  AdjointBuffers<F>(arena, steps, K, C, robust);
  return arena;
}

size_t state_bytes(const Sizes& n, int steps, size_t element) {
  return size_t(Segments(n.T, steps).states()) * size_t(n.K * (n.K + n.C)) * element;
}

// Bytes of the workspace for one memory: `plan` with scratch and states filled in.
Plan with_workspace(const BayesWriteBackwardArgs& args, Plan plan) {
  const int K = int(args.n.K), C = int(args.n.C);
  const auto at_least = [](size_t& x, size_t y) { x = x > y ? x : y; };
  if (args.mean.dtype == Dtype::float32) {
    plan.scratch = layout<float>(plan.shared, plan.steps, K, C, false).global_used();
    plan.states = state_bytes(args.n, plan.steps, sizeof(float));
  }
  at_least(plan.scratch, layout<double>(plan.shared, plan.robust_steps, K, C, true).global_used());
  at_least(plan.states, state_bytes(args.n, plan.robust_steps, sizeof(double)));
  at_least(plan.states, state_bytes(args.n, plan.root_steps, sizeof(double)));
  plan.states = (plan.states + 15) / 16 * 16;
  return plan;
}

Plan plan_alone(const BayesWriteBackwardArgs& args, const Device& device) {
  const int K = int(args.n.K), C = int(args.n.C);
  const bool narrow_state = args.mean.dtype == Dtype::float32;
  const size_t limit = device.shared_per_block, unlimited = size_t(1) << 60;
  const auto need = [&](int steps) {
    return (narrow_state ? layout<float>(unlimited, steps, K, C, false)
                         : layout<double>(unlimited, steps, K, C, true))
        .shared_used();
  };
  Plan plan = {};
  plan.team = 1;
  plan.steps = int(args.n.T < 1 ? 1 : args.n.T < 16 ? args.n.T : 16);
  while (plan.steps > 8 && need(plan.steps) > limit) plan.steps = (plan.steps + 1) / 2;
  plan.shared = need(plan.steps) < limit ? need(plan.steps) : limit;
  plan.robust_steps = plan.steps;
  while (plan.robust_steps > 4 &&
         layout<double>(plan.shared, plan.robust_steps, K, C, true).global_used() > 0)
    plan.robust_steps = (plan.robust_steps + 1) / 2;
  plan.root_steps = plan.robust_steps < kRootSteps ? plan.robust_steps : kRootSteps;
  plan.threads = threads_for(int64_t(K) * (C > K ? C : K));
  return with_workspace(args, plan);
}

// All matrices in the workspace.
Plan plan_team(const BayesWriteBackwardArgs& args, int blocks) {
  Plan plan = {};
  plan.team = blocks;
  plan.teams = size_t(args.n.B) * sizeof(TeamMemory);
  plan.steps = plan.robust_steps = int(args.n.T < 1 ? 1 : args.n.T < 32 ? args.n.T : 32);
  plan.root_steps = plan.steps < kRootSteps ? plan.steps : kRootSteps;
  plan.threads = kTileThreads;
  return with_workspace(args, plan);
}

Plan make_plan(const BayesWriteBackwardArgs& args, const Device& device) {
  const int blocks = most_blocks(args.n, device);
  const double T = double(args.n.T), K = double(args.n.K), C = double(args.n.C);
  const double operations = T * K * (5 * K + 8 * C);  // a forward pass in it
  const Plan team = plan_team(args, blocks);
  const double barriers = T * (2 + 30.0 / team.steps);
  return team_pays({operations, barriers}, blocks, operations, device) ? team
                                                                       : plan_alone(args, device);
}

}  // namespace

size_t bayes_write_backward_workspace(const BayesWriteBackwardArgs& args, const Device& device) {
  const Plan plan = make_plan(args, device);
  return plan.teams + size_t(args.n.B) * (plan.scratch + plan.states);
}

void bayes_write_backward(const BayesWriteBackwardArgs& args, const Launch& to) {
  const Plan plan = make_plan(args, to.device);
  if (plan.teams > 0) clear(to.workspace, plan.teams, to.stream);
  launch(backward_kernel, {args.n.B, 1, plan.team}, plan.threads,
         shared_bytes(plan.team, plan.shared), to.stream, args, plan,
         static_cast<char*>(to.workspace));
}

}  // namespace kanerva::cuda
