// Control: branches, calls, barriers; basic blocks and their order.
#include <map>
#include <set>

#include "decoder.h"

namespace ptx {

namespace {

void nothing(Warp&, const Instruction&, Mask) {}

}  // namespace

void Decoder::control(Opcode& opcode, const Statement& s, Instruction& i) {
  const std::string& base = opcode.base();
  if (base == "bra") {
    opcode.take("uni");
    expect_operands(s, 1, 1);
    i.control = Control::branch;
    i.kind = Kind::branch;
    branches_.emplace_back(code_.instructions.size(), s.operands[0].name);
  } else if (base == "brx") {
    opcode.take("uni");
    if (!opcode.take("idx")) fail("brx without .idx");
    expect_operands(s, 2, 2);
    i.control = Control::branch_index;
    i.kind = Kind::branch;
    add_source(i, s.operands[0], Type::u32);
    tables_.emplace_back(code_.instructions.size(), s.operands[1].name);
  } else if (base == "call") {
    call(s, i);
    opcode.take("uni");
  } else if (base == "ret") {
    opcode.take("uni");
    i.control = Control::leave;
    i.kind = Kind::call;
  } else if (base == "exit") {
    i.control = Control::exit;
    i.kind = Kind::branch;
  } else if (base == "trap") {
    i.control = Control::trap;
  } else if (base == "nanosleep") {
    expect_operands(s, 1, 1);
    if (opcode.take_type() != Type::u32) fail("nanosleep of another type than .u32");
    add_source(i, s.operands[0], Type::u32);
    i.control = Control::sleep;
  } else if ((base == "bar" || base == "barrier") &&
             std::find(opcode.rest().begin(), opcode.rest().end(), "warp") == opcode.rest().end()) {
    barrier(opcode, s, i);
  }
  if (i.control != Control::none) i.handler = &nothing;
}

void Decoder::barrier(Opcode& opcode, const Statement& s, Instruction& i) {
  i.control = Control::barrier;
  i.kind = Kind::barrier;
  if (opcode.take("cluster")) return cluster_barrier(opcode, s, i);
  opcode.take("cta");
  i.aligned = opcode.base() == "bar" || opcode.take("aligned");
  size_t at = 0;
  if (opcode.take("red")) {
    const int how = opcode.take_one({"or", "and", "popc"});
    if (how < 0) fail("bar.red without an operation");
    i.barrier = how == 0 ? Barrier::any : how == 1 ? Barrier::all : Barrier::count;
    opcode.take_type();
    if (s.operands.size() < 3 || s.operands.size() > 4) fail("operands of bar.red");
    add_target(i, s.operands[at++], i.barrier == Barrier::count ? 4 : 0);
  } else if (opcode.take("arrive")) {
    i.barrier = Barrier::arrive;
    expect_operands(s, 2, 2);
  } else if (opcode.take("sync")) {
    expect_operands(s, 1, 2);
  } else {
    fail("unknown instruction " + opcode.text());
  }
  add_source(i, s.operands[at++], Type::u32);
  const size_t threads =
      i.barrier > Barrier::arrive ? s.operands.size() - 2 : s.operands.size() - 1;
  i.option = uint8_t(at <= threads);  // whether a number of threads is given
  if (i.option) add_source(i, s.operands[at++], Type::u32);
  if (i.barrier > Barrier::arrive) {
    if (s.operands[at].negated) i.option |= 2;
    add_source(i, s.operands[at], Type::pred);
  }
}

// barrier.cluster: it releases unless it is .relaxed, and waits with .acquire.
void Decoder::cluster_barrier(Opcode& opcode, const Statement& s, Instruction& i) {
  expect_operands(s, 0, 0);
  i.kind = Kind::cluster_barrier;
  i.aligned = opcode.take("aligned");
  if (opcode.take("arrive")) {
    i.control = Control::arrive;
    i.order = opcode.take("relaxed") ? Order::relaxed : Order::release;
    if (i.order == Order::release) opcode.take("release");
  } else if (opcode.take("wait")) {
    i.control = Control::wait;
    i.order = Order::acquire;
    opcode.take("acquire");
  } else {
    fail("unknown instruction " + opcode.text());
  }
}

void Decoder::call(const Statement& s, Instruction& i) {
  i.control = Control::call;
  i.kind = Kind::call;
  const auto known = module_.functions.find(s.callee);
  if (known == module_.functions.end() || !known->second->is_defined())
    fail("a call of " + s.callee + ", which is not defined here");
  const Function& f = *known->second;
  if (f.parameters.size() != s.arguments.size() || f.results.size() != s.results.size())
    fail("a call with another number of arguments than " + s.callee + " has");
  Call call;
  call.name = s.callee;
  const auto places = [&](const std::vector<std::string>& names, std::vector<int64_t>& found) {
    for (const std::string& name : names) {
      int64_t place;
      bool of_kernel;
      if (!find_parameter(name, place, of_kernel) || of_kernel) fail("argument " + name);
      found.push_back(place);
    }
  };
  places(s.arguments, call.argument_places);
  places(s.results, call.result_places);
  i.extra = int32_t(code_.calls.size());
  code_.calls.push_back(std::move(call));
}

// Basic blocks, their order, and where they begin.
void Decoder::mark_blocks() {
  auto& code = code_.instructions;
  const size_t n = code.size();
  std::vector<bool> leads(n + 1, false);
  leads[0] = true;
  for (size_t k = 0; k < n; ++k) {
    const Instruction& i = code[k];
    if (i.branch >= 0) leads[size_t(i.branch)] = true;
    if (i.control == Control::branch_index)
      for (int to : code_.branch_tables[size_t(i.extra)]) leads[size_t(to)] = true;
    const bool ends = i.control != Control::none || i.branch >= 0;
    if (ends) leads[k + 1] = true;
    if (i.control == Control::collective) leads[k] = true;
  }
  std::vector<int> block(n, 0);
  int blocks = -1;
  for (size_t k = 0; k < n; ++k) {
    blocks += leads[k];
    block[k] = blocks;
    code[k].leads_block = leads[k];
  }
  std::vector<std::vector<int>> successors(size_t(blocks + 1));
  for (size_t k = 0; k < n; ++k) {
    if (k + 1 < n && !leads[k + 1]) continue;
    const Instruction& i = code[k];
    auto& next = successors[size_t(block[k])];
    const bool always =
        !i.guarded && (i.control == Control::branch || i.control == Control::leave ||
                       i.control == Control::exit || i.control == Control::trap ||
                       i.control == Control::branch_index);
    if (i.branch >= 0) next.push_back(block[size_t(i.branch)]);
    if (i.control == Control::branch_index)
      for (int to : code_.branch_tables[size_t(i.extra)]) next.push_back(block[size_t(to)]);
    if (!always && k + 1 < n) next.push_back(block[k + 1]);
  }
  const std::vector<int> order = block_order(successors);
  code_.order.resize(n);
  for (size_t k = 0; k < n; ++k) code_.order[k] = order[size_t(block[k])];
}

// Loads from local memory whose values are only stored again, whole or in parts: structures are
// copied with their padding, which nobody wrote.
void Decoder::mark_copies() {
  std::set<uint32_t> used;
  for (size_t before = 1; before != used.size();) {
    before = used.size();
    for (const Instruction& i : code_.instructions) {
      const bool stores = i.is_write && !i.is_read;
      bool passes = i.passes_bytes;
      for (size_t k = 0; k < i.targets; ++k) passes &= used.count(i.target[k]) == 0;
      const size_t end = stores ? size_t(i.has_base) : passes ? 0 : i.sources;
      for (size_t k = 0; k < end; ++k) used.insert(i.source[k]);
    }
  }
  for (Instruction& i : code_.instructions) {
    if (!i.is_read || i.is_write) continue;
    i.is_copied_only = true;
    for (size_t k = 0; k < i.targets; ++k) i.is_copied_only &= used.count(i.target[k]) == 0;
  }
}

void Decoder::finish() {
  Statement end;
  end.opcode = "ret";
  end.line = code_.instructions.empty() ? 0 : code_.instructions.back().line;
  statement(end);  // a body may end without one
  const auto position = [&](const std::string& label) {
    const auto at = labels_.find(label);
    if (at == labels_.end()) fail("no label " + label);
    return at->second;
  };
  for (const auto& [at, label] : branches_) code_.instructions[at].branch = position(label);
  for (const auto& [at, name] : tables_) {
    const auto table = branch_targets_.find(name);
    if (table == branch_targets_.end()) fail("no .branchtargets " + name);
    code_.instructions[at].extra = int32_t(code_.branch_tables.size());
    code_.branch_tables.emplace_back();
    for (const std::string& label : table->second)
      code_.branch_tables.back().push_back(position(label));
  }
  code_.parameter_bytes = round_up(code_.parameter_bytes, 16);
  code_.local_bytes = round_up(code_.local_bytes, 16);
  mark_blocks();
  mark_copies();
}

Code& code_of(Module& module, const std::string& name) {
  auto& code = module.codes[name];
  if (code) return *code;
  const auto f = module.functions.find(name);
  if (f == module.functions.end() || !f->second->is_defined())
    throw Unsupported(module.name + " has no function " + name);
  auto made = std::make_shared<Code>();
  Decoder decoder(*made, *f->second);
  parse_body(*f->second, decoder);
  decoder.finish();
  code = std::move(made);
  return *code;
}

}  // namespace ptx
