// PTX text into tokens: words (which keep their dots: ld.global.f32, %tid.x, $L__BB0_1), numbers,
// strings, and single signs.
#include "lexer.h"

#include <cctype>

namespace ptx {

namespace {

bool is_word(char c) {
  return std::isalnum(static_cast<unsigned char>(c)) || c == '_' || c == '$' || c == '%' ||
         c == '.';
}

}  // namespace

std::vector<Token> tokens_of(std::string_view text) {
  std::vector<Token> tokens;
  tokens.reserve(text.size() / 5);
  int line = 1;
  size_t i = 0;
  const auto starts = [&](std::string_view what) { return text.substr(i, what.size()) == what; };
  while (i < text.size()) {
    const char c = text[i];
    if (c == '\n') {
      ++line, ++i;
    } else if (std::isspace(static_cast<unsigned char>(c))) {
      ++i;
    } else if (starts("//")) {
      while (i < text.size() && text[i] != '\n') ++i;
    } else if (starts("/*")) {
      while (i < text.size() && !starts("*/")) line += text[i++] == '\n';
      i += 2;
    } else {
      const size_t begin = i++;
      if (c == '"') {
        while (i < text.size() && text[i] != '"') ++i;
        ++i;
      } else if (is_word(c)) {
        while (i < text.size() && (is_word(text[i]) || starts("::"))) {
          i += text[i] == ':' ? 2 : 1;  // .L2::128B
        }
      }
      tokens.push_back({text.substr(begin, i - begin), line});
    }
  }
  tokens.push_back({std::string_view(), line});  // the end
  return tokens;
}

}  // namespace ptx
