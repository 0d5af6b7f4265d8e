// How the write of a call is cut into chunks, blocks of columns and teams, by the launchers of
// bayes_write and causal_scan.
#pragma once

#include "information.cuh"
#include "plan.cuh"
#include "stationary_block.cuh"

namespace kanerva::cuda {

struct WritePlan {
  int steps, robust_steps;  // per chunk
  int long_steps;           // of the information form at a time; 0: it is not used
  int width, blocks;        // columns per block, blocks of columns per memory
  int team;                 // blocks of a team; 1: there are none
  bool in_clusters;         // whether teams are clusters
  int threads;
  SumsPlan sums;          // of the information form in float32, by a team
  size_t shared, global;  // bytes of scratch memory per block, or per team
};

// What the plan of a call follows from.
struct WriteCall {
  Sizes n;
  double steps = 0.0;      // of an item
  bool in_float32 = true;  // whether that is tried first
  bool reads = false;
  int64_t most_steps = 64;     // of a chunk
  bool splits = true;          // whether several blocks may share a memory
  bool may_be_long = false;    // whether the information form serves,
  bool must_be_long = false;   // and was asked for;
  double price_of_long = 1.0;  // of its multiply-adds: 2 in float64
  bool may_be_summed = false;  // whether episode_sums.cuh serves
  bool may_be_small = true;    // whether small_write_plan.cuh is asked
  bool moves = false;          // whether the memory does,
  bool identity = false;       // and its stationary covariance is that
};

// Multiply-adds of a memory's K x K half and of one column; barriers.
struct WriteWork {
  double half, column, barriers;
  double of(int64_t columns) const { return half + column * double(columns); }
};

inline WriteWork work_in_chunks(const WriteCall& call, int L) {
  const double T = call.steps, K = double(call.n.K), reads = call.reads ? 1.0 : 0.0;
  const double settled = call.moves ? (call.identity ? 0.0 : (1.0 + reads) * K) + L : 0.0;
  return {T * K * (2 * K + 2 * L + reads * (K + L) + settled), T * (2 * K + L + reads * (K + L)),
          T * (1 + (10.0 + reads) / L)};
}

inline WriteWork work_in_information_form(const WriteCall& call, int L, bool summed = false) {
  const double T = call.steps, K = double(call.n.K), price = call.price_of_long;
  const double barriers = summed ? K / 16 + 20 : 4 * T / L + 2 * K;
  return {price * K * K * (T + 4.5 * K), price * K * (T + 2 * K), barriers};
}

inline WriteWork work_of(const WriteCall& call, const WritePlan& plan) {
  return plan.long_steps > 0 ? work_in_information_form(call, plan.long_steps, plan.sums.blocks > 0)
                             : work_in_chunks(call, plan.steps);
}

inline int64_t at_most(int64_t x, int64_t most) { return x < most ? x : most; }

// Bytes of scratch memory in all of the forms, of which `shared` are shared at most.
struct WriteLayout {
  bool in_float32, reads;
  int K;
  bool moves = false, identity = false;

  template <class F>
  Arena chunk(size_t shared, int steps, int width) const {
    Arena arena(nullptr, shared, nullptr);
    if (moves) {
      StationaryBuffers<F>(arena, steps, K, width, reads, identity);
    } else {
      Buffers<F>(arena, steps, K, width, reads);
    }
    return arena;
  }
  template <class F>
  Arena information(size_t shared, int steps, int width, bool in_panels = false) const {
    Arena arena(nullptr, shared, nullptr);
    Information<F>(arena, steps, K, width, in_panels);
    return arena;
  }
  // Of the chunks tried first.
  size_t need(int steps, int width) const {
    const size_t unlimited = size_t(1) << 60;
    return (in_float32 ? chunk<float>(unlimited, steps, width)
                       : chunk<double>(unlimited, steps, width))
        .shared_used();
  }
  size_t need_long(int steps, int width) const {
    return information<double>(size_t(1) << 60, steps, width).shared_used();
  }
  // What does not fit plan.shared: the most of any form.
  size_t global(const WritePlan& plan) const {
    size_t most = chunk<double>(plan.shared, plan.robust_steps, plan.width).global_used();
    const auto include = [&](const Arena& arena) {
      if (arena.global_used() > most) most = arena.global_used();
    };
    if (in_float32) include(chunk<float>(plan.shared, plan.steps, plan.width));
    if (plan.long_steps > 0) {
      include(information<double>(plan.shared, plan.long_steps, plan.width));
      if (in_float32)
        include(information<float>(plan.shared, plan.long_steps, plan.width, plan.sums.blocks > 0));
    }
    return most;
  }
};

// Steps at a time of the information form where it serves and, if it was not asked for, takes fewer
// multiply-adds than chunks of `steps`, or fewer barriers by far; else 0.
inline int choose_information(const WriteCall& call, int width, int steps, int64_t long_steps,
                              bool summed = false) {
  if (!call.may_be_long) return 0;
  const int L = int(at_most(long_steps, call.n.T));
  if (summed) return L;
  const bool cheaper =
      work_in_information_form(call, L).of(width) < work_in_chunks(call, steps).of(width);
  return cheaper || call.must_be_long ? L : 0;
}

inline WritePlan plan_blocks(const WriteCall& call, const Device& device) {
  const Sizes& n = call.n;
  const int64_t most = n.T > 0 ? at_most(call.most_steps, n.T) : 1;
  const int K = int(n.K), C = int(n.C);
  const WriteLayout layout = {call.in_float32, call.reads, K, call.moves, call.identity};
  const size_t limit = device.shared_per_block;

  WritePlan plan = {};
  plan.team = 1;
  plan.width = C;
  if (call.splits) {
    // Memories that do not fill the processors are split by columns.
    const int64_t share = (device.processors + n.B - 1) / (n.B > 0 ? n.B : 1);
    if (share > 1 && C > 64) {
      const int64_t width = ((C + share - 1) / share + 31) / 32 * 32;
      plan.width = int(width < 32 ? 32 : width < C ? width : C);
    }
    while (layout.need(int(at_most(16, most)), plan.width) > limit && plan.width > 32)
      plan.width = (plan.width / 2 + 31) / 32 * 32;
  }
  plan.blocks = (C + plan.width - 1) / plan.width;
  // Long chunks where one block has a processor to itself, shorter ones where blocks share it.
  plan.steps = int(at_most(n.B * plan.blocks < 4 * device.processors ? 32 : 16, most));
  while (plan.steps > 8 && layout.need(plan.steps, plan.width) > limit)
    plan.steps = (plan.steps + 1) / 2;
  plan.long_steps = choose_information(call, plan.width, plan.steps, K < 32 ? 32 : at_most(K, 256));
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
inline WritePlan plan_team(const WriteCall& call, int blocks, const Device& device) {
  WritePlan plan = {};
  plan.team = blocks;
  plan.width = int(call.n.C);
  plan.blocks = 1;
  plan.steps = plan.robust_steps = int(call.n.T > 0 ? at_most(call.most_steps, call.n.T) : 1);
  if (call.may_be_long && call.may_be_summed) plan.sums = plan_sums(call.n, device);
  const bool summed = plan.sums.blocks > 0;
  plan.long_steps = choose_information(call, plan.width, plan.steps, 1024, summed);
  plan.threads = kTileThreads;
  plan.global =
      WriteLayout{call.in_float32, call.reads, int(call.n.K), call.moves, call.identity}.global(
          plan);
  return plan;
}

// Blocks on columns run side by side, each with the whole K x K half; a team shares everything.
inline WritePlan plan_write(const WriteCall& call, const Device& device) {
  const WritePlan alone = plan_blocks(call, device);
  WritePlan team = plan_team(call, most_blocks(call.n, device), device);
  const WriteWork work = work_of(call, team);
  team.team = choose_team(call.n, {work.of(call.n.C), work.barriers},
                          work_of(call, alone).of(alone.width), device);
  team.in_clusters = is_cluster(device, team.team);
  return team.team > 1 ? team : alone;
}

// The workspace: the memory of teams or the evidence of blocks, what does not fit blocks, sums.
inline size_t teams_size(const Sizes& n, const WritePlan& plan) {
  return plan.team > 1 ? size_t(n.B) * sizeof(TeamMemory) : 0;
}

inline size_t partials_size(const Sizes& n, int blocks) {
  if (blocks == 1) return 0;
  return (size_t(n.B * blocks) * sizeof(double) + 15) / 16 * 16;
}

inline size_t workspace_before_sums(const Sizes& n, const WritePlan& plan) {
  return teams_size(n, plan) + partials_size(n, plan.blocks) +
         size_t(n.B * plan.blocks) * plan.global;
}

inline size_t workspace_of(const Sizes& n, const WritePlan& plan) {
  const bool summed = plan.sums.blocks > 0;
  return workspace_before_sums(n, plan) +
         (summed ? size_t(n.B) * EpisodeSums::bytes(plan.sums, n.T) : 0);
}

template <class Args>
using WriteKernel = void (*)(Args, WritePlan, TeamMemory*, char*, double*);
template <class Args>
using FinishKernel = void (*)(Args, int, const double*);

// more: what kernels take beside that.
template <class Args, class... More>
void start_write(void (*kernel)(Args, WritePlan, TeamMemory*, char*, double*, More...),
                 void (*finish)(Args, int, const double*, More...), const Args& args,
                 const WritePlan& plan, const Launch& to, typename Same<More>::type... more) {
  // One of the two at most.
  const size_t of_teams = teams_size(args.n, plan),
               of_partials = partials_size(args.n, plan.blocks);
  char* workspace = static_cast<char*>(to.workspace);
  TeamMemory* teams = reinterpret_cast<TeamMemory*>(workspace);
  double* partials = of_partials > 0 ? reinterpret_cast<double*>(workspace) : nullptr;
  if (of_teams > 0 && !plan.in_clusters) clear(teams, of_teams, to.stream);
  size_t shared = shared_bytes(plan.team, plan.shared);
  if (plan.sums.blocks > 0 && shared < sizeof(PanelMemory)) shared = sizeof(PanelMemory);
  launch(kernel, {args.n.B, plan.blocks, plan.team, plan.in_clusters}, plan.threads, shared,
         to.stream, args, plan, teams, workspace + of_teams + of_partials, partials, more...);
  if (partials != nullptr)
    launch(finish, {args.n.B}, 256, 0, to.stream, args, plan.blocks,
           static_cast<const double*>(partials), more...);
}

// The columns and the scratch memory of this block, or of its team, which it joins.
struct Place {
  ColumnBlock columns;
  Arena arena;
};

__device__ inline Place enter_write(const Sizes& n, const WritePlan& plan, TeamMemory* teams,
                                    char* workspace) {
  const int64_t b = blockIdx.x;
  join_team(teams + b);
  const int64_t c0 = int64_t(blockIdx.y) * plan.width;
  const int count = int(c0 + plan.width <= n.C ? plan.width : n.C - c0);
  return {{c0, count, int(blockIdx.y)},
          Arena(block_memory(), plan.shared,
                workspace + (b * plan.blocks + blockIdx.y) * int64_t(plan.global))};
}

}  // namespace kanerva::cuda
