#pragma once

#include "module.h"

namespace ptx {

// The tokens of a text, which must outlive them; the last is empty.
std::vector<Token> tokens_of(std::string_view text);

// Goes through tokens.
class Cursor {
 public:
  Cursor(const std::vector<Token>& tokens, size_t at) : tokens_(tokens), at_(at) {}

  std::string_view peek(size_t ahead = 0) const {
    return at_ + ahead < tokens_.size() ? tokens_[at_ + ahead].text : std::string_view();
  }
  std::string_view next() {
    const std::string_view text = peek();
    if (at_ + 1 < tokens_.size()) ++at_;
    return text;
  }
  bool accept(std::string_view text) {
    if (peek() != text) return false;
    next();
    return true;
  }
  void expect(std::string_view text) {
    if (!accept(text))
      fail("expected '" + std::string(text) + "', found '" + std::string(peek()) + "'");
  }
  int line() const { return tokens_[at_].line; }
  size_t position() const { return at_; }
  void move_to(size_t at) { at_ = at; }
  bool at_end() const { return at_ + 1 >= tokens_.size(); }
  [[noreturn]] void fail(const std::string& what) const {
    throw Unsupported("line " + std::to_string(line()) + ": " + what);
  }

 private:
  const std::vector<Token>& tokens_;
  size_t at_;
};

}  // namespace ptx
