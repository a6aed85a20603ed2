// An SMS centre for the tests: npm's `smpp` as the server, another implementation than the one under test.
// usage: node smsc.js MODULE PORT PASSWORD    told by JSON lines on stdin, tells by JSON lines on stdout.
const [, , module_, port, password] = process.argv;
const smpp = require(module_);
const rules = { throttle_every: 0, receipt_first: false, stat: "DELIVRD", silent: false, hex_answer: false, receipts: true, delay_ms: 0, quiet: false };
let open = 0, most = 0;
const sessions = new Set();
let count = 0;

function tell(what) { process.stdout.write(JSON.stringify(what) + "\n"); }

function receipt(session, pdu, name) {
  const text = `id:${name} sub:001 dlvrd:001 submit date:2611221200 done date:2611221201 stat:${rules.stat} err:000 text:`;
  session.deliver_sm({
    source_addr: pdu.destination_addr, destination_addr: pdu.source_addr, esm_class: 4, short_message: text,
  }, (answer) => tell({ receipt_answer: answer.command_status }));
}

const server = smpp.createServer({}, (session) => {
  sessions.add(session);
  session.on("error", () => {});
  session.on("close", () => sessions.delete(session));
  session.on("bind_transceiver", (pdu) => {
    const ok = pdu.password === password;
    session.send(pdu.response({ command_status: ok ? 0 : smpp.ESME_RINVPASWD }));
    tell({ bind: ok });
    if (!ok) session.close();
  });
  session.on("enquire_link", (pdu) => { if (!rules.silent) session.send(pdu.response()); });
  session.on("unbind", (pdu) => { session.send(pdu.response()); session.close(); });
  session.on("submit_sm", (pdu) => {
    if (rules.silent) return;
    count += 1;
    if (rules.throttle_every && count % rules.throttle_every === 0) {
      session.send(pdu.response({ command_status: smpp.ESME_RTHROTTLED }));
      return;
    }
    const decimal = String(1000000 + count);
    const name = rules.hex_answer ? (1000000 + count).toString(16) : decimal;
    const message = pdu.short_message;
    if (!rules.quiet) tell({
      submit: decimal, to: pdu.destination_addr, from: pdu.source_addr, coding: pdu.data_coding,
      text: typeof message === "string" ? message : message.message,
      has_header: Boolean(message.udh),
      validity: String(pdu.validity_period),
    });
    if (rules.receipts && rules.receipt_first) receipt(session, pdu, decimal);
    most = Math.max(most, ++open);
    const answer = () => {
      open -= 1;
      session.send(pdu.response({ message_id: name }));
      if (rules.receipts && !rules.receipt_first) receipt(session, pdu, decimal);
    };
    if (rules.delay_ms) setTimeout(answer, rules.delay_ms); else answer();
  });
});
server.listen(Number(port), "127.0.0.1", () => tell({ listening: Number(port) }));

require("readline").createInterface({ input: process.stdin }).on("line", (line) => {
  const told = JSON.parse(line);
  const text = (told.inbound || {}).short_message;
  if (text && text.type === "Buffer") told.inbound.short_message = Buffer.from(text.data);
  if (told.inbound) for (const session of sessions) session.deliver_sm(told.inbound, (answer) => tell({ inbound_answer: answer.command_status }));
  if (told.most) tell({ most });
  if (told.count) tell({ count });
  Object.assign(rules, told.rules || {});
});
