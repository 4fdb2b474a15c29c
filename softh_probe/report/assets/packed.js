"use strict";
// Arrays of numbers that stand in the page as short text: see report/packed.py.

const UNPACKED = new WeakMap();

/** The value in a row and column of a packed array, or null; the array is unpacked when it is first read. */
function packedAt(packed, row, column) {
  if (!UNPACKED.has(packed)) UNPACKED.set(packed, unpack(packed));
  const value = UNPACKED.get(packed)[row * packed.shape[1] + column];
  return Number.isNaN(value) ? null : value;
}

function unpack({ u2, f4, low, step }) {
  const bytes = Uint8Array.from(atob(u2 === undefined ? f4 : u2), (letter) => letter.charCodeAt(0));
  const view = new DataView(bytes.buffer); // the byte order is told, not that of the machine
  if (u2 === undefined) return Float32Array.from({ length: bytes.length / 4 }, (_, i) => view.getFloat32(4 * i, true));
  return Float64Array.from({ length: bytes.length / 2 }, (_, i) => {
    const place = view.getUint16(2 * i, true);
    return place === 0xffff ? NaN : low + step * place;
  });
}
