// Perfetto's trace processor as a filter: requests come on stdin, answers go to stdout, both as TraceProcessorRpcStream.
// The WebAssembly and its glue are those of the UI's package, whose folder is the one argument.
"use strict";

const path = require("path");

const folder = path.resolve(process.argv[2]);
process.chdir(folder); // the glue looks for trace_processor.wasm where it is
console.log = console.error; // stdout is the protocol

const port = { postMessage: (answer) => process.stdout.write(answer) };
globalThis.self = globalThis; // the bundle takes itself for a worker
require(path.join(folder, "engine_bundle.js"));
globalThis.onmessage({ data: { enginePort: port } });
process.stdin.on("data", (request) => port.onmessage({ data: new Uint8Array(request) }));
