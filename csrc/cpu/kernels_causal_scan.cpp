#include "causal_scan_backward.h"
#include "kernels.h"

namespace kanerva {
namespace KANERVA_ISA {

KANERVA_KERNEL(causal_scan, CausalScanArgs)
KANERVA_KERNEL(causal_scan_backward, CausalScanBackwardArgs)

}  // namespace KANERVA_ISA
}  // namespace kanerva
