#include "forget.h"
#include "kernels.h"

namespace kanerva {
namespace KANERVA_ISA {

KANERVA_KERNEL(forget, ForgetArgs)
KANERVA_KERNEL(forget_backward, ForgetBackwardArgs)

}  // namespace KANERVA_ISA
}  // namespace kanerva
