// solve_addresses, forward and backward: the kernels of recall.cu with no covariance to read.
#include "launchers.h"

namespace kanerva::cuda {

namespace {

RecallArgs solving(const SolveAddressesArgs& args) {
  RecallArgs all;
  all.n = args.n;
  all.mean = args.mean;
  all.queries = args.queries;
  all.ridge = args.ridge;
  all.weights_out = args.weights_out;
  return all;
}

RecallBackwardArgs solving(const SolveAddressesBackwardArgs& args) {
  RecallBackwardArgs all;
  all.n = args.n;
  all.grad_weights = args.grad_weights;
  all.mean = args.mean;
  all.queries = args.queries;
  all.ridge = args.ridge;
  all.weights = args.weights;
  all.d_mean = args.d_mean;
  all.d_queries = args.d_queries;
  all.d_ridge = args.d_ridge;
  return all;
}

}  // namespace

size_t solve_addresses_workspace(const SolveAddressesArgs& args, const Device& device) {
  return recall_workspace(solving(args), device);
}

void solve_addresses(const SolveAddressesArgs& args, const Launch& to) {
  recall(solving(args), to);
}

size_t solve_addresses_backward_workspace(const SolveAddressesBackwardArgs& args,
                                          const Device& device) {
  return recall_backward_workspace(solving(args), device);
}

void solve_addresses_backward(const SolveAddressesBackwardArgs& args, const Launch& to) {
  recall_backward(solving(args), to);
}

}  // namespace kanerva::cuda
