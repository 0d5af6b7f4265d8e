#include <algorithm>
#include <cstdlib>
#include <cstring>

#include "lexer.h"

namespace ptx {

namespace {

bool is_number(std::string_view t) { return !t.empty() && t[0] >= '0' && t[0] <= '9'; }

bool is_directive(std::string_view t) { return t.size() > 1 && t[0] == '.'; }

int64_t integer(Cursor& c) {
  const bool negative = c.accept("-");
  const std::string text(c.next());
  char* end = nullptr;
  const uint64_t value = std::strtoull(text.c_str(), &end, 0);
  if (text.empty() || (*end != 0 && std::strcmp(end, "U") != 0)) c.fail("no integer: " + text);
  return int64_t(negative ? uint64_t(0) - value : value);
}

// 12, -3, 0x1F, 0f3F800000, 0d3FF0000000000000, 1.5
Operand number(Cursor& c) {
  Operand o;
  o.kind = Operand::number;
  const size_t sign = c.peek() == "-" ? 1 : 0;
  const std::string text(c.peek(sign));
  const char form = text.size() > 1 && text[0] == '0' ? text[1] : ' ';
  if (form == 'f' || form == 'F' || form == 'd' || form == 'D') {
    if (sign) c.fail("a sign before the bits of a number");
    char* end = nullptr;
    o.bits = std::strtoull(text.c_str() + 2, &end, 16);
    o.width = form == 'f' || form == 'F' ? 4 : 8;
    if (*end != 0 || text.size() != size_t(o.width) * 2 + 2) c.fail("no number: " + text);
    c.next();
  } else if (text.find('.') != std::string::npos) {
    o.kind = Operand::real;
    o.value = std::strtod(text.c_str(), nullptr) * (sign ? -1.0 : 1.0);
    if (sign) c.next();
    c.next();
  } else {
    o.bits = uint64_t(integer(c));
  }
  return o;
}

Operand operand(Cursor& c) {
  Operand o;
  if (c.accept("{")) {
    o.kind = Operand::vector;
    do o.parts.push_back(operand(c));
    while (c.accept(","));
    c.expect("}");
    return o;
  }
  if (c.accept("[")) {
    o.kind = Operand::address;
    if (is_number(c.peek()) || c.peek() == "-") {
      o.offset = integer(c);
    } else {
      o.name = c.next();
      if (c.accept("+")) {
        o.offset = integer(c);
      } else if (c.peek() == "-") {
        o.offset = integer(c);
      }
    }
    c.expect("]");
    return o;
  }
  if (is_number(c.peek()) || c.peek() == "-") return number(c);
  o.negated = c.accept("!");
  o.name = c.next();
  if (c.accept("+")) o.offset = integer(c);  // symbol + offset
  if (c.peek() == "|") {
    Operand both;
    both.kind = Operand::pair;
    both.parts.push_back(o);
    c.next();
    both.parts.push_back(operand(c));
    return both;
  }
  return o;
}

// The part of a declaration after its space: [.ptr ...] [.align 8] .b8 name[16] [= {...}]
Variable variable(Cursor& c) {
  Variable v;
  int align = 0;
  for (;;) {
    if (c.accept(".align")) {
      align = int(integer(c));
    } else if (c.accept(".ptr")) {
      if (c.peek() == ".global" || c.peek() == ".shared" || c.peek() == ".local" ||
          c.peek() == ".const")
        c.next();
      if (c.accept(".align")) integer(c);
    } else {
      break;
    }
  }
  int lanes = 1;
  if (c.accept(".v2")) lanes = 2;
  if (c.accept(".v4")) lanes = 4;
  const std::string type(c.next());
  if (!is_directive(type)) c.fail("no type: " + type);
  const int bytes = type_bytes(std::string_view(type).substr(1), c.line()) * lanes;
  if (c.accept(".ptr")) {  // sm_120's front end: .param .u64 .ptr .align 1 name
    if (c.peek() == ".global" || c.peek() == ".shared" || c.peek() == ".local") c.next();
    if (c.accept(".align")) integer(c);
  }
  v.name = c.next();
  v.align = align > 0 ? align : bytes;
  v.bytes = bytes;
  while (c.accept("[")) {
    if (c.peek() == "]") {
      v.bytes = 0;  // of the size that the launch gives
    } else {
      v.bytes *= int(integer(c));
    }
    c.expect("]");
  }
  if (c.accept("=")) {
    const auto append = [&](Cursor& from) {
      const Operand o = number(from);
      for (int i = 0; i < bytes; ++i) v.initial.push_back(uint8_t(o.bits >> (8 * i)));
    };
    if (c.accept("{")) {
      do append(c);
      while (c.accept(","));
      c.expect("}");
    } else {
      append(c);
    }
    v.initial.resize(size_t(v.bytes));
  }
  return v;
}

std::vector<Variable> parameters(Cursor& c) {
  std::vector<Variable> all;
  c.expect("(");
  if (c.accept(")")) return all;
  do {
    c.expect(".param");
    all.push_back(variable(c));
  } while (c.accept(","));
  c.expect(")");
  return all;
}

void skip_braces(Cursor& c) {
  int depth = 0;
  do {
    if (c.at_end()) c.fail("a brace is not closed");
    if (c.peek() == "{") ++depth;
    if (c.peek() == "}") --depth;
    c.next();
  } while (depth > 0);
}

void function(Cursor& c, Module& m, bool is_entry) {
  auto f = std::make_unique<Function>();
  f->module = &m;
  f->is_entry = is_entry;
  if (c.peek() == "(") f->results = parameters(c);
  f->name = c.next();
  if (c.peek() == "(") f->parameters = parameters(c);
  while (is_directive(c.peek())) {
    const std::string_view what = c.next();
    if (what == ".maxntid") {
      f->most_threads = int(integer(c));
      while (c.accept(",")) f->most_threads *= int(integer(c));
    } else if (what == ".minnctapersm" || what == ".maxnreg" || what == ".maxnctapersm") {
      integer(c);
    } else if (what == ".reqntid") {
      do integer(c);
      while (c.accept(","));
    } else if (what != ".noreturn") {
      c.fail("directive " + std::string(what) + " of a function");
    }
  }
  if (!c.accept(";")) {
    if (c.peek() != "{") c.fail("expected the body of " + f->name);
    f->body_begin = c.position() + 1;
    skip_braces(c);
    f->body_end = c.position() - 1;
  }
  auto& known = m.functions[f->name];
  if (!known || !known->is_defined()) known = std::move(f);
}

void file(Cursor& c, Module& m) {
  const int index = int(integer(c));
  std::string path(c.next());
  if (path.size() >= 2) path = path.substr(1, path.size() - 2);
  m.files[index] = path.substr(path.rfind('/') + 1);
  while (c.accept(",")) integer(c);
}

void module_variable(Cursor& c, Module& m, std::string_view space, bool is_external) {
  Variable v = variable(c);
  c.expect(";");
  if (space == ".shared") {
    if (v.bytes == 0 || is_external) {
      m.dynamic_shared.push_back(v.name);
      return;
    }
    m.shared_bytes = (m.shared_bytes + v.align - 1) / v.align * v.align;
    v.offset = m.shared_bytes;
    m.shared_bytes += v.bytes;
    m.shared[v.name] = v;
  } else if (space == ".global" || space == ".const") {
    auto& bytes = m.storage[v.name];
    bytes = v.initial;
    bytes.resize(size_t(v.bytes));
    m.globals[v.name] = std::move(v);
  } else {
    c.fail("variables in " + std::string(space) + " outside a function");
  }
}

void location(Cursor& c, Module& m, int& current) {
  Location l;
  l.file = int(integer(c));
  l.line = int(integer(c));
  integer(c);
  while (c.accept(",")) {
    const std::string_view what = c.next();
    if (what == "inlined_at") {
      l.outer_file = int(integer(c));
      l.outer_line = int(integer(c));
      integer(c);
    } else if (what == "function_name") {
      c.next();
      if (c.accept("+")) integer(c);
    } else {
      c.fail(".loc with " + std::string(what));
    }
  }
  current = int(m.locations.size());
  m.locations.push_back(l);
}

std::vector<std::string> names(Cursor& c) {
  std::vector<std::string> all;
  c.expect("(");
  if (c.accept(")")) return all;
  do all.emplace_back(c.next());
  while (c.accept(","));
  c.expect(")");
  return all;
}

Statement statement(Cursor& c) {
  Statement s;
  s.line = c.line();
  if (c.accept("@")) {
    s.guard_negated = c.accept("!");
    s.guard = c.next();
  }
  s.opcode = c.next();
  if (s.opcode == "call" || s.opcode == "call.uni") {
    if (c.peek() == "(") {
      s.results = names(c);
      c.expect(",");
    }
    s.callee = c.next();
    if (c.accept(",")) s.arguments = names(c);
    if (c.peek() == ",") c.fail(s.opcode + " through a pointer");
    c.expect(";");
    return s;
  }
  if (!c.accept(";")) {
    do s.operands.push_back(operand(c));
    while (c.accept(","));
    c.expect(";");
  }
  return s;
}

void declared_registers(Cursor& c, BodyVisitor& v) {
  const int line = c.line();
  const std::string type(c.next().substr(1));
  do {
    const std::string name(c.next());
    int count = -1;
    if (c.accept("<")) {
      count = int(integer(c));
      c.expect(">");
    }
    v.registers(type, name, count, line);
  } while (c.accept(","));
  c.expect(";");
}

}  // namespace

int type_bytes(std::string_view type, int line) {
  if (type == "pred") return 1;
  static const char* const kNames[] = {"b8",  "u8",  "s8",  "b16", "u16",   "s16",  "f16",
                                       "b32", "u32", "s32", "f32", "bf16",  "tf32", "f16x2",
                                       "b64", "u64", "s64", "f64", "bf16x2"};
  static const int kBytes[] = {1, 1, 1, 2, 2, 2, 2, 4, 4, 4, 4, 2, 4, 4, 8, 8, 8, 8, 4};
  for (size_t i = 0; i < std::size(kBytes); ++i)
    if (type == kNames[i]) return kBytes[i];
  throw Unsupported("line " + std::to_string(line) + ": type ." + std::string(type));
}

std::string Module::line_text(int line, size_t most) const {
  size_t begin = 0;
  for (int i = 1; i < line && begin != std::string::npos; ++i) {
    begin = text.find('\n', begin);
    if (begin != std::string::npos) ++begin;
  }
  if (begin == std::string::npos) return "";
  begin = text.find_first_not_of(" \t", begin);
  std::string found = text.substr(begin, std::min(most, text.find('\n', begin) - begin));
  std::replace(found.begin(), found.end(), '\t', ' ');
  return found;
}

std::unique_ptr<Module> parse_module(std::string text, const std::string& name) {
  auto m = std::make_unique<Module>();
  m->name = name;
  m->text = std::move(text);
  m->tokens = tokens_of(m->text);
  Cursor c(m->tokens, 0);
  while (!c.at_end()) {
    bool is_external = false;
    while (c.peek() == ".extern" || c.peek() == ".visible" || c.peek() == ".weak" ||
           c.peek() == ".common")
      is_external |= c.next() == ".extern";
    const std::string_view what = c.next();
    if (what == ".version" || what == ".address_size") {
      c.next();
    } else if (what == ".target") {
      m->target = c.next();
      while (c.accept(",")) c.next();
    } else if (what == ".file") {
      file(c, *m);
    } else if (what == ".section") {
      c.next();
      skip_braces(c);
    } else if (what == ".entry" || what == ".func") {
      function(c, *m, what == ".entry");
    } else if (what == ".pragma") {
      c.next();
      c.expect(";");
    } else if (what == ".shared" || what == ".global" || what == ".const") {
      module_variable(c, *m, what, is_external);
    } else {
      c.fail("statement " + std::string(what) + " outside a function");
    }
  }
  return m;
}

void parse_body(const Function& f, BodyVisitor& v) {
  Module& m = *f.module;
  Cursor c(m.tokens, f.body_begin);
  int current = -1;
  while (c.position() < f.body_end) {
    if (c.accept("{")) {
      v.open_scope();
    } else if (c.accept("}")) {
      v.close_scope();
    } else if (c.peek(1) == ":") {
      const std::string name(c.next());
      c.next();
      if (c.accept(".branchtargets")) {
        std::vector<std::string> labels;
        do labels.emplace_back(c.next());
        while (c.accept(","));
        c.expect(";");
        v.branch_targets(name, std::move(labels));
      } else {
        v.label(name, c.line());
      }
    } else if (c.accept(".reg")) {
      declared_registers(c, v);
    } else if (c.accept(".loc")) {
      location(c, m, current);
    } else if (c.accept(".pragma")) {
      c.next();
      c.expect(";");
    } else if (c.peek() == ".local" || c.peek() == ".shared" || c.peek() == ".param") {
      const int line = c.line();
      const std::string space(c.next().substr(1));
      const Variable found = variable(c);
      c.expect(";");
      v.variable(space, found, line);
    } else if (is_directive(c.peek())) {
      c.fail("directive " + std::string(c.peek()) + " in a function");
    } else {
      Statement s = statement(c);
      s.location = current;
      v.statement(s);
    }
  }
}

}  // namespace ptx
