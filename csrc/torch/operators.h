// Every operator of a backend, as torch calls it.
#pragma once

#include "adaptive_write.h"
#include "bayes_write.h"
#include "causal_scan.h"
#include "causal_step.h"
#include "forget.h"
#include "memory_kl.h"
#include "read.h"
#include "recall.h"
#include "solve_addresses.h"
#include "statistics.h"

namespace kanerva::ops {

// Registers all of them with a torch library. causal_step is causal_scan over one step.
template <class Backend, class Library>
void register_operators(Library& m) {
#define KANERVA_REGISTER(op, Args) m.impl(#op, TORCH_BOX(&op<Backend>));
  KANERVA_OPERATORS(KANERVA_REGISTER)
#undef KANERVA_REGISTER
  m.impl("causal_step", TORCH_BOX(&causal_step<Backend>));
}

}  // namespace kanerva::ops
