// mma.sync and ldmatrix: fragments as the PTX ISA lays them out over the lanes of a warp.
//
// How tensor cores round is not published. Assumed here, after Fasi et al. 2021 ("Numerical
// behavior of NVIDIA tensor cores"): products are exact; they and the sum so far are aligned to the
// largest exponent among them and cut off, a few bits below a float's last; so is the result.
#include <algorithm>
#include <cmath>
#include <cstring>

#include "lanes.h"
#include "number_formats.h"
#include "opcode.h"

namespace ptx {

namespace {

constexpr int kExtraBits = 1;  // below the last of a float of the largest exponent
constexpr int kTogether = 4;   // products that are added at once

constexpr int kBias = 1023, kFraction = 52;  // of a double

int exponent_of(double x) {  // of a normal number
  uint64_t bits;
  std::memcpy(&bits, &x, sizeof bits);
  return int(bits >> kFraction & 0x7ff) - kBias;
}

double power_of_two(int exponent) {
  const uint64_t bits = uint64_t(exponent + kBias) << kFraction;
  double x;
  std::memcpy(&x, &bits, sizeof x);
  return x;
}

// The sum of n numbers, cut off: floats or products of two, which are normal as doubles.
float sum_cut_off(const double* x, int n) {
  double plain = 0.0, most = 0.0;
  for (int k = 0; k < n; ++k) {
    plain += x[k];
    most = std::max(most, std::fabs(x[k]));
  }
  if (!std::isfinite(plain) || most == 0.0) return float(plain);
  const int shift = 23 + kExtraBits - exponent_of(most);
  const double scale = power_of_two(shift);
  int64_t units = 0;
  for (int k = 0; k < n; ++k) units += int64_t(x[k] * scale);
  if (units == 0) return 0.0f;
  const double sum = double(units) * power_of_two(-shift);
  const double last = power_of_two(std::max(exponent_of(sum), -126) - 23);
  return float(std::trunc(sum * (1.0 / last)) * last);
}

enum class Element : uint8_t { tf32, bfloat, half };

float element(Element type, uint32_t bits) {
  switch (type) {
    case Element::tf32:
      return float_from(bits & ~0x1fffu);
    case Element::bfloat:
      return float_from(bits << 16);
    default:
      return from_half(uint16_t(bits));
  }
}

// A number that has more than two bits below tf32's last one: it has not been split. Tensor cores
// drop those below (CUTLASS's tfloat32_t::round_half_ulp_truncate counts on it).
bool is_longer_than_tf32(uint32_t word) {
  const uint32_t exponent = word & 0x7f800000u;
  return (word & 0x7ff) != 0 && exponent != 0x7f800000u && exponent != 0;
}

// D (16 x 8) = A (16 x k) B (k x 8) + C. With g = lane / 4 and t = lane % 4, a register of A holds
// two columns for 16-bit elements, one for tf32; registers go by rows g, g + 8, then by columns.
void multiply(Warp& w, const Instruction& i, Mask m) {
  if (m != kAllLanes)
    fault(w, i, first_lane(m), "mma by a part of a warp", "all lanes must take part");
  const auto type = Element(i.option);
  const int depth = i.vector, packed = type == Element::tf32 ? 1 : 2, columns = 4 * packed;
  const int a_registers = 2 * depth / columns, b_registers = depth / columns;
  float a[16][16], b[16][8], c[16][8], d[16][8];
  for (int l = 0; l < kLanes; ++l) {
    const int g = l / 4, t = l % 4;
    const auto place = [&](int source, int r, int p) {
      const uint32_t word = w.at<uint32_t>(i.source[size_t(source + r)])[l];
      if (type == Element::tf32 && is_longer_than_tf32(word))
        report(w, i, l, "operand of mma that is not rounded to tf32", "its low bits are dropped");
      return element(type, packed == 1 ? word : word >> (16 * p) & 0xffff);
    };
    for (int r = 0; r < a_registers; ++r)
      for (int p = 0; p < packed; ++p)
        a[g + 8 * (r % 2)][columns * (r / 2) + packed * t + p] = place(0, r, p);
    for (int r = 0; r < b_registers; ++r)
      for (int p = 0; p < packed; ++p)
        b[columns * r + packed * t + p][g] = place(a_registers, r, p);
    for (int r = 0; r < 4; ++r)
      c[g + 8 * (r / 2)][2 * t + r % 2] =
          w.at<float>(i.source[size_t(a_registers + b_registers + r)])[l];
  }
  for (int row = 0; row < 16; ++row) {
    for (int column = 0; column < 8; ++column) {
      float sum = c[row][column];
      for (int k = 0; k < depth; k += kTogether) {
        double x[kTogether + 1] = {double(sum)};
        for (int j = 0; j < kTogether; ++j)
          x[1 + j] = double(a[row][k + j]) * double(b[k + j][column]);
        sum = sum_cut_off(x, kTogether + 1);
      }
      d[row][column] = sum;
    }
  }
  for (int l = 0; l < kLanes; ++l)
    for (int r = 0; r < 4; ++r)
      w.at<float>(i.target[size_t(r)])[l] = d[l / 4 + 8 * (r / 2)][2 * (l % 4) + r % 2];
}

// Matrices of 8 x 8 elements of 16 bits; lanes 8 k to 8 k + 7 have the addresses of the rows of
// matrix k. Option: whether they are transposed.
void load_matrix(Warp& w, const Instruction& i, Mask m) {
  if (m != kAllLanes)
    fault(w, i, first_lane(m), "ldmatrix by a part of a warp", "all lanes must take part");
  const int count = i.vector;
  const Mask rows = count == 4 ? kAllLanes : (Mask(1) << (8 * count)) - 1;
  Access access(w, i, rows, 16, true, false);
  uint16_t data[4][8][8];
  each_lane(rows, [&](int l) { std::memcpy(data[l / 8][l % 8], access[l], 16); });
  for (int l = 0; l < kLanes; ++l) {
    for (int k = 0; k < count; ++k) {
      const int g = l / 4, t = 2 * (l % 4);
      const uint32_t low = i.option ? data[k][t][g] : data[k][g][t];
      const uint32_t high = i.option ? data[k][t + 1][g] : data[k][g][t + 1];
      w.at<uint32_t>(i.target[size_t(k)])[l] = low | high << 16;
    }
  }
}

void mma(Opcode& opcode, const Statement& s, Builder& build, Instruction& i) {
  if (!opcode.take("sync") || !opcode.take("aligned")) return;
  const int shape = opcode.take_one({"m16n8k4", "m16n8k8", "m16n8k16"});
  if (shape < 0 || !opcode.take("row") || !opcode.take("col")) return;
  const std::vector<std::string> types = opcode.rest();
  if (types.size() != 4 || types[0] != "f32" || types[3] != "f32" || types[1] != types[2]) return;
  const Type t = type_named(types[1]);
  const int depth = shape == 0 ? 4 : shape == 1 ? 8 : 16;
  if (t == Type::tf32) {
    if (depth == 16) return;
    i.option = uint8_t(Element::tf32);
  } else if (t == Type::bf16 || t == Type::f16) {
    if (depth == 4) return;
    i.option = uint8_t(t == Type::bf16 ? Element::bfloat : Element::half);
  } else {
    return;
  }
  for (int k = 0; k < 4; ++k) opcode.take_type();
  const size_t packed = t == Type::tf32 ? 4 : 8,
               lengths[] = {4, 2 * size_t(depth) / packed, size_t(depth) / packed, 4};
  build.expect_operands(s, 4, 4);
  for (size_t k = 0; k < 4; ++k) {
    const Operand& o = s.operands[k];
    const std::vector<Operand> parts =
        o.kind == Operand::vector ? o.parts : std::vector<Operand>{o};
    if (parts.size() != lengths[k]) build.fail("a fragment of another length");
    for (const Operand& part : parts) {
      if (k == 0) build.add_target(i, part, 4);
      if (k > 0) build.add_source(i, part, k == 3 ? Type::f32 : Type::b32);
    }
  }
  i.vector = uint8_t(depth);
  i.kind = Kind::matrix;
  i.handler = &multiply;
}

}  // namespace

void find_matrix(Opcode& opcode, const Statement& s, Builder& build, Instruction& i) {
  if (opcode.base() == "mma") return mma(opcode, s, build, i);
  if (opcode.base() != "ldmatrix") return;
  if (!opcode.take("sync") || !opcode.take("aligned") || !opcode.take("m8n8")) return;
  const int count = opcode.take_one({"x1", "x2", "x4"});
  i.option = opcode.take("trans");
  i.space = take_space(opcode);
  if (count < 0 || i.space != Space::shared || opcode.take_type() != Type::b16) return;
  build.expect_operands(s, 2, 2);
  i.vector = uint8_t(1 << count);
  build.address(s.operands[1], i);
  const Operand& to = s.operands[0];
  const std::vector<Operand> parts =
      to.kind == Operand::vector ? to.parts : std::vector<Operand>{to};
  if (parts.size() != i.vector) build.fail("a vector of another length");
  for (const Operand& o : parts) build.add_target(i, o, 4);
  i.is_read = true;
  i.kind = Kind::load_shared;
  i.handler = &load_matrix;
}

}  // namespace ptx
