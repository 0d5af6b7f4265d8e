// causal_scan, forward: the write of bayes_write.cu in chunks, split into blocks and teams as
// there, with the reads of a chunk from the state before it:
//   A = tril(Q P'),  reads = Q R0 + A E,  read_var_t = (q'U0 q - |A_t|^2) / b_t
// A block reads its own columns; the first one has the variances. causal_step is a scan of one step
// whose results take the place of the state.
//
// Floor at (B, T, K, C) = (64, 2048, 64, 64), float32: 135 MB of addresses, values, queries and
// reads, 45 us at 3 TB/s; 5 billion multiply-adds, 0.2 ms at 30 T/s; 64 chunks after each other,
// with a chain of 32 pivots each, 0.2 ms: they and the products of 64 processors bind.
#include "small_write_plan.cuh"
#include "stationary.h"

namespace kanerva::cuda {

namespace {

// Arithmetic as in bayes_write.cu, without the information form, which has no states in between.
__global__ void __launch_bounds__(256, 1)
    scan_kernel(const __grid_constant__ CausalScanArgs args, const __grid_constant__ WritePlan plan,
                TeamMemory* teams, char* workspace, double* partials) {
  const auto [columns, arena] = enter_write(args.n, plan, teams, workspace);
  const Item item = item_of(args, blockIdx.x);
  double evidence = 0.0;
  Outcome outcome = item.valid ? Outcome::harder : Outcome::failed;
  if (item.valid && args.mean.dtype == Dtype::float32 && !is_small(args.n.T, args.n)) {
    outcome = write_block<float>(args, item, columns, plan.steps, plan.width, arena, false,
                                 kHardForFloat32Factors, evidence);
    sync();
  }
  if (outcome == Outcome::harder)
    outcome =
        write_robustly(args, item, columns, plan.robust_steps, plan.width, arena, false, evidence);
  finish_block(args, item, columns, plan.blocks, outcome, evidence, partials);
}

__global__ void __launch_bounds__(256, 1)
    finish_kernel(const __grid_constant__ CausalScanArgs args, int blocks, const double* partials) {
  finish_item(args, item_of(args, blockIdx.x), blocks, partials);
}

WriteCall call_of(const CausalScanArgs& args) {
  WriteCall call;
  call.n = args.n;
  call.steps = double(args.n.T) / double(args.packing.count);
  call.in_float32 = args.mean.dtype == Dtype::float32 && !is_small(args.n.T, args.n);
  call.reads = true;
  if (args.chunk_size > 0) call.most_steps = at_most(call.most_steps, args.chunk_size);
  // In place, no block may store while another has yet to load.
  call.splits = args.cov.data != args.cov_out.data && args.mean.data != args.mean_out.data;
  call.may_be_small = are_float32_by_rows(args.queries);
  return call;
}

}  // namespace

size_t causal_scan_workspace(const CausalScanArgs& args, const Device& device) {
  if (args.moves()) return stationary_workspace(args, device);
  return workspace_of_write(args, call_of(args), device);
}

void causal_scan(const CausalScanArgs& args, const Launch& to) {
  if (args.moves()) return stationary(args, to);
  start_either_write(scan_kernel, finish_kernel, args, call_of(args), to);
}

}  // namespace kanerva::cuda
