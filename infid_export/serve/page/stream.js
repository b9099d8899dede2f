// Server-sent events of a fetched response, and images in base64.

/** Yield the data of each event, parsed. EventSource cannot send a POST, hence this. */
export async function* events(response) {
  let data = [];
  for await (const line of lines(response.body)) {
    if (line.startsWith("data:")) data.push(line.slice(line[5] === " " ? 6 : 5));
    if (line !== "" || data.length === 0) continue;
    yield JSON.parse(data.join("\n"));
    data = [];
  }
}

/** Yield lines. An image is one line of megabytes, so its pieces are joined once, at its end. */
async function* lines(body) {
  const reader = body.pipeThrough(new TextDecoderStream()).getReader();
  let pieces = [];
  try {
    for (;;) {
      const { done, value } = await reader.read();
      if (done) return;
      const parts = value.split("\n");
      for (const part of parts.slice(0, -1)) {
        yield [...pieces, part].join("").replace(/\r$/, "");
        pieces = [];
      }
      pieces.push(parts.at(-1));
    }
  } finally {
    reader.cancel().catch(() => {});
  }
}

/** Decode an image into a blob: it takes three quarters of the text's memory, outside of JavaScript's heap. */
export function imageBlob(base64, format = "png") {
  return new Blob([bytesOf(base64)], { type: `image/${format}` });
}

function bytesOf(base64) {
  if (Uint8Array.fromBase64) return Uint8Array.fromBase64(base64);
  const text = atob(base64);
  const bytes = new Uint8Array(text.length);
  for (let index = 0; index < text.length; index++) bytes[index] = text.charCodeAt(index);
  return bytes;
}
