#include "kernels.h"
#include "solve_addresses.h"

namespace kanerva {
namespace KANERVA_ISA {

void run_solve_addresses(const SolveAddressesArgs& args, const Executor& executor) {
  solve_addresses(args, executor);
}

void run_solve_addresses_backward(const SolveAddressesBackwardArgs& args,
                                  const Executor& executor) {
  solve_addresses_backward(args, executor);
}

}  // namespace KANERVA_ISA
}  // namespace kanerva
