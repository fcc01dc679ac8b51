// Clients of the matrix of clients and proxies (../run.py): Node's own fetch, and axios. Reads commands from standard input, a JSON object
// a line, and answers each with a line: the id, and a status or what went wrong.
import http from "node:http";
import readline from "node:readline";
import { Readable } from "node:stream";

const PIECE = Buffer.alloc(64 << 10, "x");

function* pieces(bytes) {
  for (let left = bytes; left > 0; left -= PIECE.length) yield PIECE.subarray(0, Math.min(left, PIECE.length));
}

async function byFetch({ method, url, headers, bytes, chunked }) {
  let body = bytes ? Buffer.alloc(bytes, "x") : undefined;
  if (chunked) body = Readable.toWeb(Readable.from(pieces(bytes)));
  const answer = await fetch(url, { method, headers, body, duplex: body ? "half" : undefined });
  return [answer.status, await answer.text()];
}

async function byAxios({ method, url, headers, bytes, chunked }) {
  const { default: axios } = await import("axios");
  byAxios.agent ??= new http.Agent({ keepAlive: true });
  let data = bytes ? Buffer.alloc(bytes, "x") : undefined;
  if (chunked) data = Readable.from(pieces(bytes));
  const answer = await axios.request({
    method, url, headers, data, httpAgent: byAxios.agent, responseType: "text", validateStatus: () => true, maxRedirects: 0,
    maxBodyLength: Infinity, transformResponse: (text) => text, proxy: false,
  });
  return [answer.status, String(answer.data)];
}

const ask = process.argv[2] === "axios" ? byAxios : byFetch;
for await (const line of readline.createInterface({ input: process.stdin })) {
  const command = JSON.parse(line);
  if (command.sleep) {
    await new Promise((done) => setTimeout(done, command.sleep * 1000));
    continue;
  }
  try {
    const [status, text] = await ask(command);
    console.log(`${command.id}\t${status}${command.find ? " " + text.includes(command.find) : ""}`);
  } catch (error) {
    console.log(`${command.id}\t${error.cause?.code ?? error.code ?? ""} ${error.cause?.message ?? error.message}`.replaceAll("\n", " "));
  }
}
process.exit(0);
