// The memory: a Gaussian belief over a matrix of K slots by C numbers, in plain arrays.
// M ~ MN(mean, cov, I); a write is exact Bayesian regression of values on addresses, item by item.
"use strict";

class Memory {
  constructor(slots, size, priorMean, priorVar, noiseVar) {
    this.slots = slots;
    this.size = size;
    this.noiseVar = noiseVar;
    this.mean = Float64Array.from(priorMean);
    this.cov = new Float64Array(slots * slots);
    for (let i = 0; i < slots; i++) this.cov[i * slots + i] = priorVar;
  }

  // cov w, and w'cov w: how unsure a read at w is.
  spread(weights) {
    const { slots, cov } = this;
    const direction = new Float64Array(slots);
    let variance = 0;
    for (let i = 0; i < slots; i++) {
      let sum = 0;
      for (let j = 0; j < slots; j++) sum += cov[i * slots + j] * weights[j];
      direction[i] = sum;
      variance += weights[i] * sum;
    }
    return { direction, variance };
  }

  // w'R
  read(weights) {
    const out = new Float64Array(this.size);
    for (let k = 0; k < this.slots; k++) {
      for (let c = 0; c < this.size; c++) out[c] += weights[k] * this.mean[k * this.size + c];
    }
    return out;
  }

  // One step of the Kalman filter; with a negative noise it takes the same step back.
  write(weights, values, noiseVar = this.noiseVar) {
    const { slots, size, mean, cov } = this;
    const { direction, variance } = this.spread(weights);
    const total = variance + noiseVar;
    const expected = this.read(weights);
    for (let i = 0; i < slots; i++) {
      const gain = direction[i] / total;
      for (let c = 0; c < size; c++) mean[i * size + c] += gain * (values[c] - expected[c]);
      for (let j = 0; j < slots; j++) cov[i * slots + j] -= gain * direction[j];
    }
  }

  forget(weights, values) {
    this.write(weights, values, -this.noiseVar);
  }
}

if (typeof module !== "undefined") module.exports = { Memory };
