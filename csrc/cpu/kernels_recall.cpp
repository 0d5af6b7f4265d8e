#include "kernels.h"
#include "recall.h"

namespace kanerva {
namespace KANERVA_ISA {

KANERVA_KERNEL(recall, RecallArgs)
KANERVA_KERNEL(recall_backward, RecallBackwardArgs)

}  // namespace KANERVA_ISA
}  // namespace kanerva
