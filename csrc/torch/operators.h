// Every operator of a backend, as torch calls it.
#pragma once

#include "call.h"
#include "causal_step.h"

namespace kanerva::ops {

// Registers all of them with a torch library. causal_step is causal_scan over one step.
template <class Backend, class Library>
void register_operators(Library& m) {
#define KANERVA_REGISTER(op, Args) m.impl(#op, &call<Backend, Args>);
  KANERVA_OPERATORS(KANERVA_REGISTER)
#undef KANERVA_REGISTER
  m.impl("causal_step", TORCH_BOX(&causal_step<Backend>));
}

}  // namespace kanerva::ops
