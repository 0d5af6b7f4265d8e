#include "kernels.h"
#include "memory_kl.h"

namespace kanerva {
namespace KANERVA_ISA {

KANERVA_KERNEL(memory_kl, MemoryKlArgs)
KANERVA_KERNEL(memory_kl_backward, MemoryKlBackwardArgs)

}  // namespace KANERVA_ISA
}  // namespace kanerva
