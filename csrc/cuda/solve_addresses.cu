// solve_addresses, forward and backward: the kernels of recall.cu with no covariance to read.
#include "launchers.h"

namespace kanerva::cuda {

size_t solve_addresses_workspace(const SolveAddressesArgs& args, const Device& device) {
  return recall_workspace(RecallArgs{args}, device);
}

void solve_addresses(const SolveAddressesArgs& args, const Launch& to) {
  recall(RecallArgs{args}, to);
}

size_t solve_addresses_backward_workspace(const SolveAddressesBackwardArgs& args,
                                          const Device& device) {
  return recall_backward_workspace(RecallBackwardArgs{args}, device);
}

void solve_addresses_backward(const SolveAddressesBackwardArgs& args, const Launch& to) {
  recall_backward(RecallBackwardArgs{args}, to);
}

}  // namespace kanerva::cuda
