// Reads a chat completion's server-sent events. Aborting the signal closes the connection, which cancels the request on the server.

export async function* events(body, key, signal) {
  const headers = { "content-type": "application/json", ...authorization(key) };
  const response = await fetch("/v1/chat/completions", { method: "POST", headers, body: JSON.stringify(body), signal });
  if (!response.ok) throw new Error(await reason(response));
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  for (;;) {
    const { value, done } = await reader.read();
    if (done) throw new Error("The connection ended before the answer did.");
    const parts = (rest + value).split("\n\n");
    rest = parts.pop();
    for (const part of parts) {
      const text = part.replace(/^data: /, "");
      if (text === "[DONE]") return;
      const event = JSON.parse(text);
      if (event.error) throw new Error(event.error.message);
      yield event;
    }
  }
}

export function authorization(key) {
  return key ? { authorization: `Bearer ${key}` } : {};
}

export async function reason(response) {
  const wait = response.headers.get("retry-after");
  let message = `The server answered ${response.status}.`;
  try {
    message = (await response.json()).error.message;
  } catch {
    // Something between us and the server may answer in its own words.
  }
  return wait ? `${message} Try again in ${wait} s.` : message;
}
