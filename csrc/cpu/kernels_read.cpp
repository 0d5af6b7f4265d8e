#include "kernels.h"
#include "read.h"

namespace kanerva {
namespace KANERVA_ISA {

KANERVA_KERNEL(read, ReadArgs)
KANERVA_KERNEL(read_backward, ReadBackwardArgs)

}  // namespace KANERVA_ISA
}  // namespace kanerva
