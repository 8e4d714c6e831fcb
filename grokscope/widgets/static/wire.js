// What Python packs (views/payload.py) as typed arrays.

const KINDS = { u1: Uint8Array, u2: Uint16Array, u4: Uint32Array, i4: Int32Array, f4: Float32Array };

/** The payload with {dtype, shape, buffer} turned into typed arrays that know their shape. `buffers`: of a message. */
export function unpack(value, buffers = []) {
  if (Array.isArray(value)) return value.map((v) => unpack(v, buffers));
  if (value === null || typeof value !== "object") return value;
  if ("dtype" in value && "buffer" in value) {
    const view = typeof value.buffer === "number" ? buffers[value.buffer] : value.buffer;
    const bytes = view instanceof ArrayBuffer ? new Uint8Array(view) : new Uint8Array(view.buffer, view.byteOffset, view.byteLength);
    if (value.dtype === "f2") return halves(bytes, value.shape);
    const array = new KINDS[value.dtype](bytes.slice().buffer); // a copy begins where its type needs it to
    array.shape = value.shape;
    return array;
  }
  return Object.fromEntries(Object.entries(value).map(([k, v]) => [k, unpack(v, buffers)]));
}

/** Numbers of 16 bits, as a report keeps them. */
function halves(bytes, shape) {
  const words = new Uint16Array(bytes.slice().buffer);
  const array = Float32Array.from(words, (h) => {
    const exponent = (h >> 10) & 31;
    const part = h & 1023;
    const size = exponent === 0 ? part * 2 ** -24 : exponent === 31 ? (part ? NaN : Infinity) : (1 + part / 1024) * 2 ** (exponent - 15);
    return h & 0x8000 ? -size : size;
  });
  array.shape = shape;
  return array;
}

/** Arrays [L, T, a] and [L, T, b] of one kind as [L, T, a + b]. */
export function joinSlots(first, rest) {
  const [layers, tokens, a] = first.shape;
  const b = rest.shape[2];
  const made = new first.constructor(layers * tokens * (a + b));
  for (let i = 0; i < layers * tokens; i++) {
    for (let s = 0; s < a; s++) made[i * (a + b) + s] = first[i * a + s];
    for (let s = 0; s < b; s++) made[i * (a + b) + a + s] = rest[i * b + s];
  }
  made.shape = [layers, tokens, a + b];
  return made;
}

/** What a plane (q, low, high) says at a place, or null where it says nothing. */
export function valueAt(plane, at) {
  const q = plane.q[at];
  return q === 255 ? null : plane.low + ((plane.high - plane.low) * q) / 254;
}

/** The empty slot of an array of experts. */
export function emptyOf(experts) {
  return experts instanceof Uint16Array ? 65535 : 255;
}
