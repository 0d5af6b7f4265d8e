#include "kernels.h"
#include "solve_addresses.h"

namespace kanerva {
namespace KANERVA_ISA {

KANERVA_KERNEL(solve_addresses, SolveAddressesArgs)
KANERVA_KERNEL(solve_addresses_backward, SolveAddressesBackwardArgs)

}  // namespace KANERVA_ISA
}  // namespace kanerva
