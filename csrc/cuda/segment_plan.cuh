// Into how many segments a sequence of a memory that moves is cut, by the launchers of
// stationary.cu and stationary_backward.cu.
#pragma once

#include "stationary_element.cuh"

namespace kanerva::cuda {

constexpr int64_t kLeastOfSegment = 64;  // steps, with which there is something to gain

// Steps of a segment, at most, of an item of T steps or fewer.
inline int64_t longest_segment(int64_t T, const SegmentPlan& plan) {
  const int64_t each = (T + plan.count - 1) / plan.count, twice = 2 * plan.least;
  return at_most((each > twice ? each : twice) + 16, T);
}

// Into how many segments to cut an item; 1: none. What the longest block multiplies and adds, in
// operations of a step's products, of which a block does 8 a clock by the estimates of
// scripts/kernel_times.py: those of whole matrices take a third, gradients, of many small products,
// twice as much; a pivot takes 300 clocks, of a matrix in registers 250, the launches 20 us.
inline int count_segments(const SegmentCall& call, bool spills, const Device& device) {
  constexpr double worth_it = 0.75, rate = 8.0, pivot = 300.0 * rate, launches = 3e5;
  constexpr int fewest = 3;
  const Sizes& n = call.write.n;
  const int64_t most = device.processors / n.B;
  if (call.has_teams || device.team_work >= 0.0 || n.K > kMostInRegisters || most < fewest)
    return 1;
  const double T = call.write.steps, K = double(n.K), C = double(n.C), L = 16.0;
  const double price = spills ? 2.0 : 1.0;  // of what is partly in global memory
  const double element = price * (K * (5 * K + 4 * L) + C * (3 * K + L)) + pivot;
  double whole = call.whole + pivot, one = element + call.segment + pivot;
  double belief = price * K * K * (5 * K + 4 * C) / 3 + 500 * rate * K;
  if (call.adjoint) {
    whole = 2 * call.whole + 3 * pivot;
    one = element + 2 * (2 * call.segment + 3 * pivot);
    belief += price * K * K * (5 * K + 3 * C) / 3;
  }
  if (call.clocks > 0.0) whole = rate * call.clocks;
  if (call.clocks_of_segment > 0.0) one = element + rate * call.clocks_of_segment;
  int best = 1;
  double least = worth_it * T * whole;
  for (int count = fewest; count <= most && T >= double(kLeastOfSegment * count); ++count) {
    const double operations = T / count * one + count * belief + launches;
    if (operations < least) {
      best = count;
      least = operations;
    }
  }
  return best;
}

inline SegmentPlan plan_segments(const SegmentCall& call, const Device& device) {
  const Sizes& n = call.write.n;
  SegmentPlan plan;
  if (call.by_steps || n.T < 2 || n.B < 1) return plan;
  const int K = int(n.K), C = int(n.C);
  const auto layout = [&](int steps) {
    Arena arena(nullptr, device.shared_per_block, nullptr);
    ElementBuffers(arena, steps, K, C, call.write.identity);
    return arena;
  };
  plan.steps = int(at_most(at_most(call.write.most_steps, 16), n.T));
  while (plan.steps > 8 && layout(plan.steps).global_used() > 0) plan.steps = (plan.steps + 1) / 2;
  plan.shared = layout(plan.steps).shared_used();
  plan.scratch = layout(plan.steps).global_used();
  const bool forced = device.segments > 0;
  plan.count =
      forced ? int(at_most(device.segments, n.T)) : count_segments(call, plan.scratch > 0, device);
  if (plan.count < 2) return plan;
  if (!forced) plan.least = kLeastOfSegment;
  plan.in_float32 = call.write.in_float32;
  plan.state = call.state;
  plan.longest = longest_segment(n.T, plan);
  Arena beliefs(nullptr, device.shared_per_block, nullptr), chain = beliefs;
  BeliefBuffers(beliefs, K, C);
  ChainBuffers(chain, K, C);
  const auto larger = [](size_t x, size_t y) { return x > y ? x : y; };
  plan.shared_of_beliefs = larger(beliefs.shared_used(), chain.shared_used());
  plan.scratch_of_beliefs = larger(beliefs.global_used(), chain.global_used());
  return plan;
}

}  // namespace kanerva::cuda
