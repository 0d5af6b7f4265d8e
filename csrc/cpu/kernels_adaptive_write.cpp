#include "adaptive_write.h"
#include "adaptive_write_backward.h"
#include "kernels.h"

namespace kanerva {
namespace KANERVA_ISA {

KANERVA_KERNEL(adaptive_write, AdaptiveWriteArgs)
KANERVA_KERNEL(adaptive_write_backward, AdaptiveWriteBackwardArgs)

}  // namespace KANERVA_ISA
}  // namespace kanerva
