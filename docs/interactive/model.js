// The Kanerva Machine that ships as pretrained:omniglot-kanerva: coders, keys, and its memory.
// Its parameters are read from the very file that Python loads (safetensors).
"use strict";

// Bytes of a safetensors file to Float32Arrays by name, each with its shape.
function readTensors(bytes) {
  const view = new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength);
  const length = Number(view.getBigUint64(0, true));
  const header = JSON.parse(new TextDecoder().decode(bytes.subarray(8, 8 + length)));
  const tensors = { metadata: header.__metadata__ };
  for (const [name, entry] of Object.entries(header)) {
    if (name === "__metadata__") continue;
    const { dtype, shape, data_offsets: [start] } = entry;
    const data = new Float32Array(shape.reduce((a, b) => a * b, 1));
    const at = 8 + length + start;
    for (let i = 0; i < data.length; i++) {
      if (dtype === "F16") data[i] = fromHalf(view.getUint16(at + 2 * i, true));
      else if (dtype === "F32") data[i] = view.getFloat32(at + 4 * i, true);
      else data[i] = view.getFloat64(at + 8 * i, true);
    }
    tensors[name] = { data, shape };
  }
  return tensors;
}

function fromHalf(bits) {
  const sign = bits >> 15 ? -1 : 1;
  const exponent = (bits >> 10) & 31;
  const fraction = bits & 1023;
  if (exponent === 0) return sign * fraction * 2 ** -24;
  if (exponent === 31) return fraction ? NaN : sign * Infinity;
  return sign * (1 + fraction / 1024) * 2 ** (exponent - 15);
}

const relu = (x) => x.map((value) => Math.max(value, 0));
const sigmoid = (x) => x.map((value) => 1 / (1 + Math.exp(-value)));

// Images are { data, channels, side }, data by channel, row and column.
function convolve(image, weight, bias, stride) {
  const { data, channels, side } = image;
  const [filters, , size] = weight.shape;
  const out = Math.floor((side + 2 - size) / stride) + 1;
  const result = new Float32Array(filters * out * out);
  for (let f = 0; f < filters; f++) {
    for (let y = 0; y < out; y++) {
      for (let x = 0; x < out; x++) {
        let sum = bias.data[f];
        for (let c = 0; c < channels; c++) {
          for (let i = 0; i < size; i++) {
            const row = y * stride - 1 + i;
            if (row < 0 || row >= side) continue;
            for (let j = 0; j < size; j++) {
              const column = x * stride - 1 + j;
              if (column < 0 || column >= side) continue;
              sum += data[(c * side + row) * side + column]
                * weight.data[((f * channels + c) * size + i) * size + j];
            }
          }
        }
        result[(f * out + y) * out + x] = sum;
      }
    }
  }
  return { data: result, channels: filters, side: out };
}

// The mirror image: stride 2, to a given side.
function spreadOut(image, weight, bias, out) {
  const { data, channels, side } = image;
  const [, filters, size] = weight.shape;
  const result = new Float32Array(filters * out * out);
  for (let f = 0; f < filters; f++) result.fill(bias.data[f], f * out * out, (f + 1) * out * out);
  for (let c = 0; c < channels; c++) {
    for (let y = 0; y < side; y++) {
      for (let x = 0; x < side; x++) {
        const value = data[(c * side + y) * side + x];
        for (let f = 0; f < filters; f++) {
          for (let i = 0; i < size; i++) {
            const row = 2 * y - 1 + i;
            if (row < 0 || row >= out) continue;
            for (let j = 0; j < size; j++) {
              const column = 2 * x - 1 + j;
              if (column < 0 || column >= out) continue;
              result[(f * out + row) * out + column]
                += value * weight.data[((c * filters + f) * size + i) * size + j];
            }
          }
        }
      }
    }
  }
  return { data: result, channels: filters, side: out };
}

class KanervaMachine {
  constructor(bytes) {
    this.tensors = readTensors(bytes);
    const config = JSON.parse(this.tensors.metadata.config).model;
    this.slots = config.memory_size;
    this.size = config.code_size;
    this.noiseVar = (config.noise_std ?? 1) ** 2;
    this.addresses = this._unitRows(this._get("memory.address_matrix"));
  }

  _get(name) {
    const tensor = this.tensors[`model.${name}`];
    if (tensor === undefined) throw new Error(`the model has no ${name}`);
    return tensor;
  }

  _unitRows({ data, shape: [rows, columns] }) {
    const unit = data.slice();
    for (let i = 0; i < rows; i++) {
      const row = unit.subarray(i * columns, (i + 1) * columns);
      const norm = Math.hypot(...row);
      row.forEach((value, j) => { row[j] = value / norm; });
    }
    return { data: unit, shape: [rows, columns] };
  }

  _linear(name, input) {
    return this._product(this._get(`${name}.weight`), input, this._get(`${name}.bias`).data);
  }

  _product({ data, shape: [rows, columns] }, input, bias) {
    const result = new Float32Array(rows);
    for (let i = 0; i < rows; i++) {
      let sum = bias ? bias[i] : 0;
      for (let j = 0; j < columns; j++) sum += data[i * columns + j] * input[j];
      result[i] = sum;
    }
    return result;
  }

  _conv(name, image, stride) {
    return convolve(image, this._get(`${name}.weight`), this._get(`${name}.bias`), stride);
  }

  _residual(name, image) {
    const inner = this._conv(`${name}.first`, { ...image, data: relu(image.data) }, 1);
    const outer = this._conv(`${name}.second`, { ...inner, data: relu(inner.data) }, 1);
    return { ...image, data: image.data.map((value, i) => value + outer.data[i]) };
  }

  // The mean of a normal whose head gives mean and log-std.
  _mean(name, input) {
    const out = this._linear(`${name}.out`, relu(this._linear(`${name}.hidden`, input)));
    return out.subarray(0, out.length / 2);
  }

  // 28 x 28 probabilities of ink to features.
  features(pixels) {
    let image = { data: Float32Array.from(pixels), channels: 1, side: 28 };
    for (const block of [0, 2, 4]) {
      image = this._conv(`encoder.blocks.${block}`, image, 2);
      image = this._residual(`encoder.blocks.${block + 1}`, image);
    }
    return relu(this._linear("encoder.linear", relu(image.data)));
  }

  // Codes to probabilities of ink.
  decode(code) {
    let image = { data: this._linear("decoder.linear", code), channels: 16, side: 3 };
    [7, 14, 28].forEach((side, i) => {
      image = this._residual(`decoder.blocks.${3 * i}`, image);
      const name = `decoder.blocks.${3 * i + 2}`;
      const input = { ...image, data: relu(image.data) };
      image = spreadOut(input, this._get(`${name}.weight`), this._get(`${name}.bias`), side);
    });
    return sigmoid(image.data);
  }

  // Where features are written and read: w = A key(y), y the mean of q(y|x).
  address(features) {
    const latent = this._mean("latent", features);
    return this._product(this.addresses, this._linear("key.2", relu(this._linear("key.0", latent))));
  }

  emptyMemory() {
    const variance = Math.exp(this._get("memory.log_prior_var").data[0]);
    const mean = this._get("memory.prior_mean").data;
    return new Memory(this.slots, this.size, mean, variance, this.noiseVar);
  }

  // What a picture puts into the memory.
  item(pixels) {
    const features = this.features(pixels);
    return { weights: this.address(features), values: this._mean("write_code", features) };
  }

  // One read: the picture, its address, and how unsure the memory is there.
  read(pixels, memory) {
    const features = this.features(pixels);
    const weights = this.address(features);
    const read = Float32Array.from(memory.read(weights));
    const both = Float32Array.from([...features, ...read]);
    const change = this._mean("read_code", both);
    const picture = this.decode(read.map((value, i) => value + change[i]));
    return { picture, weights, variance: memory.spread(weights).variance };
  }
}

// The next query: what was read, as the prior of what was seen; a share of that was replaced.
function combine(read, seen, share) {
  if (share === 0) return read;
  const right = 1 - share / 2;
  return read.map((prior, i) => {
    const ink = seen[i] * right + (1 - seen[i]) * (1 - right);
    const blank = seen[i] * (1 - right) + (1 - seen[i]) * right;
    return (prior * ink) / (prior * ink + (1 - prior) * blank);
  });
}

if (typeof module !== "undefined") module.exports = { KanervaMachine, combine, readTensors };
