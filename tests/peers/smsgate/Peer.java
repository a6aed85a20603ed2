import com.chinamobile.cmos.sms.SmsTextMessage;
import com.zx.sms.BaseMessage;
import com.zx.sms.codec.cmpp.msg.CmppDeliverRequestMessage;
import com.zx.sms.codec.cmpp.msg.CmppReportRequestMessage;
import com.zx.sms.codec.cmpp.msg.CmppSubmitRequestMessage;
import com.zx.sms.codec.cmpp.msg.CmppSubmitResponseMessage;
import com.zx.sms.codec.sgip12.msg.SgipDeliverRequestMessage;
import com.zx.sms.codec.sgip12.msg.SgipReportRequestMessage;
import com.zx.sms.codec.sgip12.msg.SgipSubmitRequestMessage;
import com.zx.sms.codec.sgip12.msg.SgipSubmitResponseMessage;
import com.zx.sms.codec.smgp.msg.SMGPDeliverMessage;
import com.zx.sms.codec.smgp.msg.SMGPReportData;
import com.zx.sms.codec.smgp.msg.SMGPSubmitMessage;
import com.zx.sms.codec.smgp.msg.SMGPSubmitRespMessage;
import com.zx.sms.common.util.MsgId;
import com.zx.sms.connect.manager.EndpointEntity;
import com.zx.sms.connect.manager.EndpointEntity.ChannelType;
import com.zx.sms.connect.manager.EndpointManager;
import com.zx.sms.connect.manager.cmpp.CMPPServerChildEndpointEntity;
import com.zx.sms.connect.manager.cmpp.CMPPServerEndpointEntity;
import com.zx.sms.connect.manager.sgip.SgipClientEndpointEntity;
import com.zx.sms.connect.manager.sgip.SgipServerChildEndpointEntity;
import com.zx.sms.connect.manager.sgip.SgipServerEndpointEntity;
import com.zx.sms.connect.manager.smgp.SMGPServerChildEndpointEntity;
import com.zx.sms.connect.manager.smgp.SMGPServerEndpointEntity;
import com.zx.sms.handler.api.AbstractBusinessHandler;
import com.zx.sms.handler.api.BusinessHandlerInterface;
import io.netty.channel.Channel;
import io.netty.channel.ChannelHandler.Sharable;
import io.netty.channel.ChannelHandlerContext;
import java.io.BufferedReader;
import java.io.InputStreamReader;
import java.io.PrintStream;
import java.nio.charset.StandardCharsets;
import java.util.ArrayList;
import java.util.Collections;
import java.util.List;
import java.util.concurrent.atomic.AtomicLong;

/**
 * SMSGate as an operator's gateway: a server that answers submits as it is told on its standard input.
 *
 * Peer sgip|cmpp20|cmpp30|smgp PORT LOGIN PASSWORD
 *   throttle N      every Nth part is answered "too fast"; 0: none
 *   swallow N       every Nth part is not answered at all
 *   refuse CODE     every part is answered with this code; 0: accepted
 *   report STAT     a receipt of this state follows each part; none; STAT+twice; STAT+early (before the answer)
 *   back HOST PORT LOGIN PASSWORD   (sgip) connect to report and deliver
 *   mo NUMBER HEX   a user's message in UTF-8
 *   delay MS        answers come so late
 *   most            say how many parts were without an answer at once, at the most: "most COUNT"
 *   quiet           no line for each message
 * With -Dsingle=true parts of long messages are answered one by one, else the message once it is whole.
 * It prints "ready", "submit NAMES NUMBER HEX RESULTS", "received COUNT" on "count".
 */
public class Peer {
    static volatile int throttle = 0, swallow = 0, refuse = 0, delay = 0;
    static final java.util.concurrent.atomic.AtomicInteger open = new java.util.concurrent.atomic.AtomicInteger();
    static final java.util.concurrent.atomic.AtomicInteger most = new java.util.concurrent.atomic.AtomicInteger();
    static volatile String report = "none";
    static volatile boolean quiet = false;
    static volatile Channel newest = null;
    static final AtomicLong parts = new AtomicLong(), accepted = new AtomicLong(), acked = new AtomicLong();
    static String protocol;
    static PrintStream out;

    public static void main(String[] arguments) throws Exception {
        out = new PrintStream(new java.io.FileOutputStream(java.io.FileDescriptor.out), true, "UTF-8");
        protocol = arguments[0];
        EndpointManager.INS.addEndpointEntity(server(Integer.parseInt(arguments[1]), arguments[2], arguments[3]));
        EndpointManager.INS.openAll();
        out.println("ready");
        BufferedReader input = new BufferedReader(new InputStreamReader(System.in, StandardCharsets.UTF_8));
        for (String line = input.readLine(); line != null; line = input.readLine()) {
            try {
                obey(line.trim().split(" "));
            } catch (Exception failure) {  // such as a message before anybody is connected
                out.println("failed " + failure);
            }
        }
        System.exit(0);
    }

    static void obey(String[] words) throws Exception {
        switch (words[0]) {
            case "throttle": throttle = Integer.parseInt(words[1]); break;
            case "swallow": swallow = Integer.parseInt(words[1]); break;
            case "refuse": refuse = Integer.parseInt(words[1]); break;
            case "report": report = words[1]; break;
            case "delay": delay = Integer.parseInt(words[1]); break;
            case "most": out.println("most " + most.get()); break;
            case "quiet": quiet = true; break;
            case "count": out.println("received " + parts.get() + " " + accepted.get() + " " + acked.get()); break;
            case "back": EndpointManager.INS.openEndpoint(back(words)); break;
            case "mo": deliver(words[1], new String(unhex(words[2]), StandardCharsets.UTF_8)); break;
            case "reports": flood(Integer.parseInt(words[1]), Long.parseLong(words[2]), words[3]); break;
            default: out.println("unknown " + words[0]);
        }
    }

    // --- endpoints --------------------------------------------------------------------------------------------------

    static EndpointEntity server(int port, String login, String password) throws Exception {
        if (protocol.equals("sgip")) {
            SgipServerEndpointEntity server = new SgipServerEndpointEntity();
            common(server, "server", port);
            SgipServerChildEndpointEntity child = new SgipServerChildEndpointEntity();
            child.setLoginName(login);
            child.setLoginPassowrd(password);
            child.setIdleTimeSec((short) 60);
            common(child, "child", port);
            server.addchild(child);
            return server;
        }
        if (protocol.equals("smgp")) {
            SMGPServerEndpointEntity server = new SMGPServerEndpointEntity();
            common(server, "server", port);
            SMGPServerChildEndpointEntity child = new SMGPServerChildEndpointEntity();
            child.setClientID(login);
            child.setPassword(password);
            child.setClientVersion((byte) 0x30);
            common(child, "child", port);
            server.addchild(child);
            return server;
        }
        CMPPServerEndpointEntity server = new CMPPServerEndpointEntity();
        common(server, "server", port);
        CMPPServerChildEndpointEntity child = new CMPPServerChildEndpointEntity();
        child.setUserName(login);
        child.setPassword(password);
        child.setVersion((short) (protocol.equals("cmpp20") ? 0x20 : 0x30));
        common(child, "child", port);
        server.addchild(child);
        return server;
    }

    static void common(EndpointEntity entity, String id, int port) {
        entity.setId(id);
        entity.setHost("127.0.0.1");
        entity.setPort(port);
        entity.setValid(true);
        entity.setChannelType(ChannelType.DUPLEX);
        entity.setMaxChannels((short) 20);
        entity.setRetryWaitTimeSec((short) 30);
        entity.setMaxRetryCnt((short) 1);
        entity.setReSendFailMsg(false);
        entity.setWindow(1000);
        if (Boolean.getBoolean("single")) entity.setSupportLongmsg(EndpointEntity.SupportLongMessage.NONE);
        entity.setBusinessHandlerSet(handlers());
    }

    static List<BusinessHandlerInterface> handlers() {
        List<BusinessHandlerInterface> handlers = new ArrayList<>();
        handlers.add(new Handler());
        return handlers;
    }

    static EndpointEntity back(String[] words) {
        SgipClientEndpointEntity client = new SgipClientEndpointEntity();
        common(client, "back", Integer.parseInt(words[2]));
        client.setHost(words[1]);
        client.setChannelType(ChannelType.UP);
        client.setLoginName(words[3]);
        client.setLoginPassowrd(words[4]);
        client.setMaxChannels((short) 1);
        client.setIdleTimeSec((short) 60);
        return client;
    }

    // --- what comes in ----------------------------------------------------------------------------------------------

    @Sharable
    public static class Handler extends AbstractBusinessHandler {
        @Override public String name() { return "peer"; }

        @Override public Handler clone() { return new Handler(); }

        @Override public void channelRead(ChannelHandlerContext ctx, Object message) throws Exception {
            newest = ctx.channel();
            if (message instanceof SgipSubmitRequestMessage) {
                SgipSubmitRequestMessage submit = (SgipSubmitRequestMessage) message;
                note(names(submit, submit.getFragments()), submit.getUsernumber()[0], submit.getMsgContent(),
                    answer(ctx, submit, submit.getFragments()));
            } else if (message instanceof CmppSubmitRequestMessage) {
                CmppSubmitRequestMessage submit = (CmppSubmitRequestMessage) message;
                note(names(submit, submit.getFragments()), submit.getDestterminalId()[0], submit.getMsgContent(),
                    answer(ctx, submit, submit.getFragments()));
            } else if (message instanceof SMGPSubmitMessage) {
                SMGPSubmitMessage submit = (SMGPSubmitMessage) message;
                note(names(submit, submit.getFragments()), submit.getDestTermIdArray()[0], submit.getMsgContent(),
                    answer(ctx, submit, submit.getFragments()));
            } else {
                if (message instanceof BaseMessage && ((BaseMessage) message).isResponse()) acked.incrementAndGet();
                ctx.fireChannelRead(message);
            }
        }
    }

    static <T extends BaseMessage> String names(T first, List<T> more) { return Integer.toString(all(first, more).size()); }

    static <T> List<T> all(T first, List<T> more) {
        List<T> list = new ArrayList<>(more == null ? Collections.<T>emptyList() : more);
        list.add(0, first);
        return list;
    }

    static <T extends BaseMessage> String answer(ChannelHandlerContext ctx, T first, List<T> more) throws Exception {
        StringBuilder results = new StringBuilder();
        for (T part : all(first, more)) {
            long number = parts.incrementAndGet();
            if (swallow > 0 && number % swallow == 0) { results.append("-,"); continue; }
            boolean tooFast = throttle > 0 && number % throttle == 0;
            int code = tooFast ? (protocol.equals("sgip") ? 11 : protocol.equals("smgp") ? 1 : 8) : refuse;
            if (code == 0) accepted.incrementAndGet();
            results.append(code).append(',');
            most.accumulateAndGet(open.incrementAndGet(), Math::max);
            if (delay == 0) { open.decrementAndGet(); respond(ctx, part, code); continue; }
            ctx.executor().schedule(() -> { open.decrementAndGet(); respond(ctx, part, code); return null; },
                delay, java.util.concurrent.TimeUnit.MILLISECONDS);
        }
        return results.toString();
    }

    static void respond(ChannelHandlerContext ctx, BaseMessage part, int code) throws Exception {
        boolean early = report.endsWith("+early") && code == 0, late = !report.equals("none") && !early && code == 0;
        String stat = report.split("\\+")[0];
        int times = report.endsWith("+twice") ? 2 : 1;
        if (part instanceof SgipSubmitRequestMessage) {
            SgipSubmitRequestMessage submit = (SgipSubmitRequestMessage) part;
            SgipSubmitResponseMessage answer = new SgipSubmitResponseMessage(submit.getHeader());
            answer.setResult((short) code);
            answer.setTimestamp(submit.getTimestamp());
            if (early) sgipReport(submit, stat);
            ctx.writeAndFlush(answer);
            for (int time = 0; late && time < times; time++) sgipReport(submit, stat);
        } else if (part instanceof CmppSubmitRequestMessage) {
            CmppSubmitRequestMessage submit = (CmppSubmitRequestMessage) part;
            CmppSubmitResponseMessage answer = new CmppSubmitResponseMessage(submit.getHeader());
            answer.setResult(code);
            if (early) cmppReport(ctx, answer.getMsgId(), submit.getDestterminalId()[0], stat);
            ctx.writeAndFlush(answer);
            for (int time = 0; late && time < times; time++)
                cmppReport(ctx, answer.getMsgId(), submit.getDestterminalId()[0], stat);
        } else {
            SMGPSubmitMessage submit = (SMGPSubmitMessage) part;
            SMGPSubmitRespMessage answer = new SMGPSubmitRespMessage();
            answer.setSequenceNo(submit.getSequenceNo());
            answer.setStatus(code);
            answer.setMsgId(new com.zx.sms.codec.smgp.msg.MsgId());
            if (early) smgpReport(ctx, answer.getMsgId(), submit.getDestTermIdArray()[0], stat);
            ctx.writeAndFlush(answer);
            for (int time = 0; late && time < times; time++)
                smgpReport(ctx, answer.getMsgId(), submit.getDestTermIdArray()[0], stat);
        }
    }

    // --- what goes back ---------------------------------------------------------------------------------------------

    static void sgipReport(SgipSubmitRequestMessage submit, String stat) {
        SgipReportRequestMessage back = new SgipReportRequestMessage();
        back.setSequenceId(submit.getSequenceNumber());
        back.setUsernumber(submit.getUsernumber()[0]);
        back.setState((short) (stat.equals("DELIVRD") ? 0 : 2));
        back.setErrorcode((short) (stat.equals("DELIVRD") ? 0 : 25));
        EndpointManager.INS.getEndpointConnector("back").asynwrite(back);
    }

    static void cmppReport(ChannelHandlerContext ctx, MsgId id, String number, String stat) {
        CmppDeliverRequestMessage deliver = new CmppDeliverRequestMessage();
        CmppReportRequestMessage back = new CmppReportRequestMessage();
        back.setMsgId(id);
        back.setStat(stat);
        back.setSubmitTime("2611220130");
        back.setDoneTime("2611220131");
        back.setDestterminalId(number);
        deliver.setReportRequestMessage(back);
        deliver.setDestId("10690000");
        deliver.setSrcterminalId(number);
        ctx.channel().writeAndFlush(deliver);
    }

    static void smgpReport(ChannelHandlerContext ctx, com.zx.sms.codec.smgp.msg.MsgId id, String number, String stat) {
        SMGPDeliverMessage deliver = new SMGPDeliverMessage();
        SMGPReportData back = new SMGPReportData();
        back.setMsgId(id);
        back.setSub("001");
        back.setDlvrd("001");
        back.setSubTime("2611220130");
        back.setDoneTime("2611220131");
        back.setStat(stat);
        back.setErr(stat.equals("DELIVRD") ? "000" : "001");
        back.setTxt("");
        deliver.setReport(back);
        deliver.setDestTermId("10659000");
        deliver.setSrcTermId(number);
        ctx.channel().writeAndFlush(deliver);
    }

    static void deliver(String number, String text) throws Exception {
        if (protocol.equals("sgip")) {
            SgipDeliverRequestMessage deliver = new SgipDeliverRequestMessage();
            deliver.setUsernumber(number);
            deliver.setSpnumber("10655000");
            deliver.setMsgContent(text);
            EndpointManager.INS.getEndpointConnector("back").asynwrite(deliver).sync();
        } else if (protocol.equals("smgp")) {
            SMGPDeliverMessage deliver = new SMGPDeliverMessage();
            deliver.setSrcTermId(number);
            deliver.setDestTermId("10659000");
            deliver.setMsgContent(text);
            newest.writeAndFlush(deliver).sync();
        } else {
            CmppDeliverRequestMessage deliver = new CmppDeliverRequestMessage();
            deliver.setSrcterminalId(number);
            deliver.setDestId("10690000");
            deliver.setMsgContent(text);
            newest.writeAndFlush(deliver).sync();
        }
    }

    /** reports COUNT NODE STAMP.FIRST: receipts of consecutive sequences, as fast as they go (sgip). */
    static void flood(int count, long node, String place) throws Exception {
        long stamp = Long.parseLong(place.split("\\.")[0]);
        int first = Integer.parseInt(place.split("\\.")[1]);
        for (int number = 0; number < count; number++) {
            SgipReportRequestMessage back = new SgipReportRequestMessage();
            back.setSequenceId(new com.zx.sms.common.util.SequenceNumber(node, stamp, first + number));
            back.setUsernumber("8613800000000");
            back.setState((short) 0);
            EndpointManager.INS.getEndpointConnector("back").asynwrite(back);
        }
    }

    static void note(String names, String number, String text, String results) {
        if (quiet) return;
        out.println("submit " + names + " " + number + " " + hex(text.getBytes(StandardCharsets.UTF_8)) + " " + results);
    }

    static String hex(byte[] bytes) {
        StringBuilder text = new StringBuilder("0x");
        for (byte one : bytes) text.append(String.format("%02x", one));
        return text.toString();
    }

    static byte[] unhex(String text) {
        byte[] bytes = new byte[text.length() / 2];
        for (int at = 0; at < bytes.length; at++)
            bytes[at] = (byte) Integer.parseInt(text.substring(2 * at, 2 * at + 2), 16);
        return bytes;
    }
}
