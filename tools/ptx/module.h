// PTX text as it is written: functions, variables, statements. parser.cpp makes it, decode.cpp
// turns a function's statements into instructions.
#pragma once

#include <cstdint>
#include <map>
#include <memory>
#include <stdexcept>
#include <string>
#include <string_view>
#include <vector>

namespace ptx {

// What the interpreter does not know, or what is no PTX: says the instruction and the line.
struct Unsupported : std::runtime_error {
  using std::runtime_error::runtime_error;
};

struct Token {
  std::string_view text;
  int line = 0;
};

struct Operand {
  enum Kind { symbol, number, real, address, vector, pair };
  Kind kind = symbol;
  std::string name;            // of a symbol, or of an address's base; empty: none
  bool negated = false;        // !p
  uint64_t bits = 0;           // of a number
  int width = 0;               // bytes of a number given by its bits (0f..., 0d...); 0: an integer
  double value = 0.0;          // of a real number in decimals
  int64_t offset = 0;          // of an address
  std::vector<Operand> parts;  // of a vector {a, b} or a pair a|b
};

struct Statement {
  std::string guard;  // the predicate of @p; empty: none
  bool guard_negated = false;
  std::string opcode;  // such as ld.shared.v2.f64
  std::vector<Operand> operands;
  int line = 0;
  int location = -1;  // index of Module::locations
  // Only of a call: operands are empty.
  std::string callee;
  std::vector<std::string> results, arguments;
};

// Where the compiler says that an instruction comes from.
struct Location {
  int file = 0, line = 0;
  int outer_file = 0, outer_line = 0;  // where it was inlined; 0: nowhere
};

struct Variable {
  std::string name;
  int bytes = 0, align = 1;
  int64_t offset = 0;
  std::vector<uint8_t> initial;  // of a variable in global or constant memory
};

struct Module;
struct Code;

struct Function {
  Module* module = nullptr;
  std::string name;
  bool is_entry = false;
  std::vector<Variable> results, parameters;
  int most_threads = 0;                 // .maxntid; 0: not said
  size_t body_begin = 0, body_end = 0;  // tokens between the braces; none: only declared
  bool is_defined() const { return body_end > 0; }
};

struct Module {
  std::string name, target;
  std::string text;
  std::vector<Token> tokens;
  std::map<std::string, std::unique_ptr<Function>> functions;
  std::map<int, std::string> files;
  std::vector<Location> locations;
  std::map<std::string, Variable> shared;  // static shared memory; its offsets
  std::vector<std::string> dynamic_shared;
  std::map<std::string, Variable> globals;
  std::map<std::string, std::vector<uint8_t>> storage;  // of the globals
  int64_t shared_bytes = 0;
  std::map<std::string, std::shared_ptr<Code>> codes;  // of the functions that have run

  // A line of the text, trimmed, at most `most` characters.
  std::string line_text(int line, size_t most = 100) const;
};

// Bytes of a fundamental type: "f64" -> 8. Throws Unsupported.
int type_bytes(std::string_view type, int line);

// The whole text but the functions' bodies. Throws Unsupported.
std::unique_ptr<Module> parse_module(std::string text, const std::string& name);

// What a function's body holds, in order.
struct BodyVisitor {
  virtual ~BodyVisitor() = default;
  virtual void open_scope() = 0;
  virtual void close_scope() = 0;
  virtual void label(const std::string& name, int line) = 0;
  // `count` registers called name0, name1, ...; count < 0: one of that name.
  virtual void registers(const std::string& type, const std::string& name, int count, int line) = 0;
  virtual void variable(const std::string& space, const Variable& variable, int line) = 0;
  virtual void branch_targets(const std::string& name, std::vector<std::string> labels) = 0;
  virtual void statement(const Statement& statement) = 0;
};

void parse_body(const Function& function, BodyVisitor& visitor);

}  // namespace ptx
