// USART1 of STM32F4 and F7 with the two streams of DMA2 that serve it, and the modem's line.
//
// Renode's own models have neither an idle line with circular DMA nor the line's speed. Bytes come in
// at the baud rate in virtual time, whatever the host does; what has left the board goes to the
// worker that owns this node, over one connection to loopback that this model dials: so nothing
// of an emulation listens anywhere.
//
// Frames, both ways: type (1 byte), length (2 bytes, big endian), payload.
//   to the worker:  N name of the node, U bytes, D DTR (0 or 1), B the board was reset,
//                   A bytes that have arrived (8 bytes), F flash operations (8), P the power was cut,
//                   I a run is over: idle (1) or not (0), and the emulation's microseconds (8)
//   to the board:   R bytes, C carrier (0 or 1), G go on: for so many microseconds (4 bytes) and then
//                   until the core sleeps, at most for so many more (4);
//                   E the worker closes the connection, and lives on
using System;
using System.Collections.Concurrent;
using System.Collections.Generic;
using System.Diagnostics;
using System.Linq;
using System.Net.Sockets;
using System.Text;
using System.Threading;
using Antmicro.Renode.Core;
using Antmicro.Renode.Logging;
using Antmicro.Renode.Peripherals.Bus;
using Antmicro.Renode.Peripherals.CPU;
using Antmicro.Renode.Peripherals.Timers;
using Antmicro.Renode.Time;

namespace Antmicro.Renode.Peripherals.Tinyfleet
{
    /// The worker that owns the node, at the other end of one connection.
    public class Worker : IDisposable
    {
        /// `goOn`: what a frame G asks for; it answers itself. `endsWithWorker`: without a worker nobody
        /// is left to end this emulation, so it ends.
        public Worker(int port, string node, Action<uint, uint> goOn, bool endsWithWorker)
        {
            this.goOn = goOn;
            this.endsWithWorker = endsWithWorker;
            client = new TcpClient("127.0.0.1", port) { NoDelay = true };
            stream = client.GetStream();
            var name = Encoding.ASCII.GetBytes(node);
            Send((byte)'N', name, name.Length);
            new Thread(Listen) { IsBackground = true, Name = "tinyfleet worker of " + node }.Start();
        }

        public void Send(byte type, byte[] payload, int length)
        {
            var frame = new byte[3 + length];
            frame[0] = type;
            frame[1] = (byte)(length >> 8);
            frame[2] = (byte)length;
            Array.Copy(payload, 0, frame, 3, length);
            lock(stream)
            {
                try
                {
                    stream.Write(frame, 0, frame.Length);
                }
                catch(System.IO.IOException)
                {
                    End();
                }
            }
        }

        public void Send(byte type, byte value)
        {
            Send(type, new[] { value }, 1);
        }

        public void Send(byte type, byte head, long value)
        {
            var payload = new byte[9];
            payload[0] = head;
            for(var i = 8; i > 0; i--)
            {
                payload[i] = (byte)value;
                value >>= 8;
            }
            Send(type, payload, payload.Length);
        }

        public bool TryTake(out KeyValuePair<byte, byte[]> frame)
        {
            return frames.TryDequeue(out frame);
        }

        public void Dispose()
        {
            isOver = true;
            client.Close();
        }

        private void Listen()
        {
            try
            {
                while(true)
                {
                    var head = Read(3);
                    var payload = Read(head[1] << 8 | head[2]);
                    if(head[0] == (byte)'G')
                    {
                        goOn(Number(payload, 0), Number(payload, 4));
                    }
                    else if(head[0] == (byte)'E')
                    {
                        isOver = true;
                    }
                    else
                    {
                        frames.Enqueue(new KeyValuePair<byte, byte[]>(head[0], payload));
                    }
                }
            }
            catch(Exception)
            {
                End();
            }
        }

        private static uint Number(byte[] data, int at)
        {
            return (uint)(data[at] << 24 | data[at + 1] << 16 | data[at + 2] << 8 | data[at + 3]);
        }

        private byte[] Read(int count)
        {
            var data = new byte[count];
            var got = 0;
            while(got < count)
            {
                var more = stream.Read(data, got, count - got);
                if(more == 0)
                {
                    throw new System.IO.EndOfStreamException();
                }
                got += more;
            }
            return data;
        }

        private void End()
        {
            if(!isOver && endsWithWorker)
            {
                Process.GetCurrentProcess().Kill();
            }
        }

        private volatile bool isOver;
        private readonly bool endsWithWorker;
        private readonly Action<uint, uint> goOn;
        private readonly TcpClient client;
        private readonly NetworkStream stream;
        private readonly ConcurrentQueue<KeyValuePair<byte, byte[]>> frames = new ConcurrentQueue<KeyValuePair<byte, byte[]>>();
    }

    /// USART1, in its first (F4) or second (F7) generation of registers.
    public class Stm32Serial : IDoubleWordPeripheral, IKnownSize, IGPIOReceiver
    {
        public Stm32Serial(IMachine machine, Stm32Dma dma, int version, uint frequency, int workerPort, string node, bool endsWithWorker = true)
        {
            this.version = version;
            this.frequency = frequency;
            this.machine = machine;
            this.dma = dma;
            dma.Serial = this;
            FlashOperations = () => 0;
            IRQ = new GPIO();
            Carrier = new GPIO();
            Owner = new Worker(workerPort, node, GoOn, endsWithWorker);
            line = new LimitTimer(machine.ClockSource, 1000000, this, "line", 1000, Direction.Ascending, true, WorkMode.Periodic, true, true);
            line.LimitReached += Tick;
            Reset();
        }

        public void Reset()
        {
            Array.Clear(registers, 0, registers.Length);
            isIdle = isFull = statusWasRead = false;
            quietTicks = 0;
            pause = true;
            wasReset = true;
            leaving.Clear();
            IRQ.Unset();
            Owner.Send((byte)'B', 0);
        }

        /// DTR: what the modem dials for.
        public void OnGPIO(int number, bool value)
        {
            Owner.Send((byte)'D', (byte)(value ? 1 : 0));
        }

        public uint ReadDoubleWord(long offset)
        {
            if(offset == Status)
            {
                statusWasRead = true;
                var transmitterIsEmpty = leaving.Count == 0 ? 0xC0u : 0u;
                var acknowledges = version == 1 ? 0u : (Cr1 >> 3 & 1) << 21 | (Cr1 >> 2 & 1) << 22;
                return transmitterIsEmpty | (isFull ? 0x20u : 0u) | (isIdle ? 0x10u : 0u) | acknowledges;
            }
            if(offset == ReceiveData)
            {
                isFull = false;
                if(version == 1 && statusWasRead)
                {
                    isIdle = false;
                    Update();
                }
                statusWasRead = false;
                return received;
            }
            return offset / 4 < registers.Length ? registers[offset / 4] : 0;
        }

        public void WriteDoubleWord(long offset, uint value)
        {
            if(offset == TransmitData)
            {
                leaving.Enqueue((byte)value);
            }
            else if(version == 2 && offset == 0x20)
            {
                isIdle &= (value & 0x10) == 0;
            }
            else if(offset != Status && offset / 4 < registers.Length)
            {
                registers[offset / 4] = value;
            }
            Update();
        }

        /// Bytes that DMA has read from memory leave the board one after the other.
        public void Transmit(byte[] data)
        {
            foreach(var one in data)
            {
                leaving.Enqueue(one);
            }
        }

        /// DMA was stopped: what hasn't left stays.
        public void StopTransmitting()
        {
            leaving.Clear();
        }

        public bool DmaReceives { get { return (Cr3 & 0x40) != 0; } }

        public long Size { get { return 0x400; } }

        public GPIO IRQ { get; private set; }

        /// DCD: the modem's stream is open.
        public GPIO Carrier { get; private set; }

        public Worker Owner { get; private set; }

        /// Counts flash operations, which are told from time to time.
        public Func<long> FlashOperations { get; set; }

        // The core sleeps where it executes less than a tenth of what it could.
        private void GoOn(uint first, uint atMost)
        {
            var emulation = EmulationManager.Instance.CurrentEmulation;
            var cpu = machine.SystemBus.GetCPUs().First();
            if(first > 0)
            {
                emulation.RunFor(TimeInterval.FromMicroseconds(first));
            }
            var sleeps = false;
            var slice = ShortestSlice;
            for(var spent = 0u; !sleeps && spent < atMost; spent += slice)
            {
                var executed = cpu.ExecutedInstructions;
                emulation.RunFor(TimeInterval.FromMicroseconds(slice));
                sleeps = (cpu.ExecutedInstructions - executed) * 10 < ((TranslationCPU)cpu).PerformanceInMips * slice;
                slice = Math.Min(LongestSlice, 2 * slice);
            }
            Owner.Send((byte)'I', (byte)(sleeps ? 1 : 0), (long)machine.ElapsedVirtualTime.TimeElapsed.TotalMicroseconds);
        }

        // As long as BytesPerTick take on the line.
        private void Tick()
        {
            WaitForHost();
            TakeFrames();
            if(wasReset)
            {
                // The port that reads the pin was reset as well.
                wasReset = false;
                Carrier.Set(false);
                Carrier.Set(carries);
            }
            Leave();
            Arrive();
            Tell();
            // A quiet line is looked at seldom: every look costs the host something.
            var isQuiet = pause && arriving.Count == 0 && leaving.Count == 0;
            line.Limit = isQuiet ? QuietMicroseconds : Math.Max(1ul, 10000000ul * BytesPerTick / Baud);
        }

        // Cores keep virtual time from running ahead of the host's; one without power doesn't.
        private void WaitForHost()
        {
            var time = machine.LocalTimeSource;
            if(time.AdvanceImmediately || !machine.SystemBus.GetCPUs().All(cpu => cpu.IsHalted))
            {
                return;
            }
            var ahead = time.ElapsedVirtualHostTimeDifference;
            if(ahead.Ticks > 0)
            {
                Thread.Sleep(ahead.ToTimeSpan());
            }
        }

        private void Tell()
        {
            if(outgoing.Count >= MostUntold || (outgoing.Count > 0 && leaving.Count == 0))
            {
                Owner.Send((byte)'U', outgoing.ToArray(), outgoing.Count);
                outgoing.Clear();
            }
            if(arrived - arrivedTold >= MostUntold || (arrived != arrivedTold && arriving.Count == 0))
            {
                arrivedTold = arrived;
                Owner.Send((byte)'A', 0, arrived);
            }
            if(FlashOperations() != operationsTold)
            {
                operationsTold = FlashOperations();
                Owner.Send((byte)'F', 0, operationsTold);
            }
        }

        private void TakeFrames()
        {
            KeyValuePair<byte, byte[]> frame;
            while(Owner.TryTake(out frame))
            {
                switch(frame.Key)
                {
                case (byte)'R':
                    foreach(var one in frame.Value)
                    {
                        arriving.Enqueue(one);
                    }
                    break;
                case (byte)'C':
                    carries = frame.Value[0] != 0;
                    if(!carries)
                    {
                        // What was under way is lost; nobody waits for it.
                        arrived += arriving.Count;
                        arriving.Clear();
                    }
                    Carrier.Set(carries);
                    break;
                default:
                    this.Log(LogLevel.Error, "a frame of type {0} of the worker", frame.Key);
                    break;
                }
            }
        }

        private void Leave()
        {
            var count = Math.Min(BytesPerTick, leaving.Count);
            if(count == 0)
            {
                return;
            }
            for(var i = 0; i < count; i++)
            {
                outgoing.Add(leaving.Dequeue());
            }
            if(leaving.Count == 0)
            {
                dma.Transmitted();
            }
        }

        private void Arrive()
        {
            var got = 0;
            if(isFull && DmaReceives && dma.IsReceiving)
            {
                isFull = false;
                dma.Receive(received);
            }
            while(got < BytesPerTick && IsReceiving && arriving.Count > 0)
            {
                if(FlowsByRts && isFull && !dma.IsReceiving)
                {
                    break;
                }
                received = arriving.Dequeue();
                isFull = true;
                got++;
                arrived++;
                if(DmaReceives && dma.IsReceiving)
                {
                    isFull = false;
                    dma.Receive(received);
                }
            }
            if(got > 0)
            {
                quietTicks = 0;
                pause = false;
            }
            else if(!pause && ++quietTicks == 1)
            {
                pause = true;
                isIdle = true;
                Update();
            }
        }

        private void Update()
        {
            IRQ.Set(isIdle && (Cr1 & 0x10) != 0);
        }

        private long Status { get { return version == 1 ? 0x00 : 0x1C; } }

        private long ReceiveData { get { return version == 1 ? 0x04 : 0x24; } }

        private long TransmitData { get { return version == 1 ? 0x04 : 0x28; } }

        private uint Cr1 { get { return registers[version == 1 ? 3 : 0]; } }

        private uint Cr3 { get { return registers[version == 1 ? 5 : 2]; } }

        private bool FlowsByRts { get { return (Cr3 & 0x100) != 0; } }

        private bool IsReceiving { get { return (Cr1 & 4) != 0 && (Cr1 & (version == 1 ? 1u << 13 : 1u)) != 0; } }

        private uint Baud
        {
            get
            {
                var divider = registers[version == 1 ? 2 : 3] & 0xFFFF;
                return divider == 0 ? 115200 : frequency / divider;
            }
        }

        private const int BytesPerTick = 8;
        private const int MostUntold = 256;
        private const ulong QuietMicroseconds = 5000;
        private const uint ShortestSlice = 1000;
        private const uint LongestSlice = 16000;

        private bool isIdle, isFull, statusWasRead, carries, wasReset, pause;
        private byte received;
        private int quietTicks;
        private long arrived, arrivedTold, operationsTold;
        private readonly int version;
        private readonly uint frequency;
        private readonly IMachine machine;
        private readonly Stm32Dma dma;
        private readonly LimitTimer line;
        private readonly uint[] registers = new uint[8];
        private readonly Queue<byte> arriving = new Queue<byte>();
        private readonly Queue<byte> leaving = new Queue<byte>();
        private readonly List<byte> outgoing = new List<byte>();
    }

    /// DMA2, as far as streams 2 (from the USART) and 7 (to it) go.
    public class Stm32Dma : IDoubleWordPeripheral, IKnownSize, INumberedGPIOOutput
    {
        public Stm32Dma(IMachine machine)
        {
            bus = machine.GetSystemBus(this);
            var lines = new Dictionary<int, IGPIO>();
            for(var i = 0; i < Streams; i++)
            {
                lines[i] = new GPIO();
            }
            Connections = lines;
        }

        public void Reset()
        {
            foreach(var one in new[] { control, count, reload, peripheral, memory, flags })
            {
                Array.Clear(one, 0, Streams);
            }
            foreach(var one in Connections.Values)
            {
                one.Unset();
            }
        }

        public uint ReadDoubleWord(long offset)
        {
            if(offset < 8)
            {
                return Flags(offset < 4 ? 0 : 4);
            }
            int stream;
            switch(Register(offset, out stream))
            {
            case 0x00:
                return control[stream];
            case 0x04:
                return count[stream];
            case 0x08:
                return peripheral[stream];
            case 0x0C:
                return memory[stream];
            default:
                return 0;
            }
        }

        public void WriteDoubleWord(long offset, uint value)
        {
            if(offset == 0x08 || offset == 0x0C)
            {
                Clear(offset == 0x08 ? 0 : 4, value);
                return;
            }
            int stream;
            switch(Register(offset, out stream))
            {
            case 0x00:
                Control(stream, value);
                break;
            case 0x04:
                count[stream] = value & 0xFFFF;
                break;
            case 0x08:
                peripheral[stream] = value;
                break;
            case 0x0C:
                memory[stream] = value;
                break;
            }
        }

        /// A byte of the USART's goes to memory.
        public void Receive(byte value)
        {
            var position = reload[FromSerial] - count[FromSerial];
            bus.WriteByte(memory[FromSerial] + position, value);
            count[FromSerial]--;
            if(count[FromSerial] == reload[FromSerial] / 2)
            {
                flags[FromSerial] |= Half;
            }
            if(count[FromSerial] == 0)
            {
                flags[FromSerial] |= Complete;
                if((control[FromSerial] & Circular) != 0)
                {
                    count[FromSerial] = reload[FromSerial];
                }
                else
                {
                    control[FromSerial] &= ~Enabled;
                }
            }
            Update(FromSerial);
        }

        /// The last byte has left.
        public void Transmitted()
        {
            if((control[ToSerial] & Enabled) == 0)
            {
                return;
            }
            count[ToSerial] = 0;
            control[ToSerial] &= ~Enabled;
            flags[ToSerial] |= Half | Complete;
            Update(ToSerial);
        }

        public bool IsReceiving { get { return (control[FromSerial] & Enabled) != 0; } }

        public Stm32Serial Serial { get; set; }

        public IReadOnlyDictionary<int, IGPIO> Connections { get; private set; }

        public long Size { get { return 0x400; } }

        private void Control(int stream, uint value)
        {
            var starts = (value & ~control[stream] & Enabled) != 0;
            var stops = (control[stream] & ~value & Enabled) != 0;
            control[stream] = value;
            if(starts)
            {
                reload[stream] = count[stream];
                if(stream == ToSerial)
                {
                    Serial.Transmit(bus.ReadBytes(memory[stream], (int)count[stream]));
                }
            }
            else if(stops && stream == ToSerial)
            {
                Serial.StopTransmitting();
            }
            Update(stream);
        }

        private static long Register(long offset, out int stream)
        {
            stream = 0;
            if(offset < 0x10 || offset >= 0x10 + 0x18 * Streams)
            {
                return -1;
            }
            stream = (int)(offset - 0x10) / 0x18;
            return (offset - 0x10) % 0x18;
        }

        private uint Flags(int first)
        {
            var all = 0u;
            for(var i = 0; i < 4; i++)
            {
                all |= flags[first + i] << Shifts[i];
            }
            return all;
        }

        private void Clear(int first, uint value)
        {
            for(var i = 0; i < 4; i++)
            {
                flags[first + i] &= ~(value >> Shifts[i] & 0x3D);
                Update(first + i);
            }
        }

        private void Update(int stream)
        {
            var wanted = ((control[stream] & 0x10) != 0 ? Complete : 0) | ((control[stream] & 0x08) != 0 ? Half : 0);
            Connections[stream].Set((flags[stream] & wanted) != 0);
        }

        private const int Streams = 8;
        private const int FromSerial = 2;
        private const int ToSerial = 7;
        private const uint Enabled = 1u;
        private const uint Circular = 0x100u;
        private const uint Half = 0x10u;
        private const uint Complete = 0x20u;
        private static readonly int[] Shifts = { 0, 6, 16, 22 };

        private readonly IBusController bus;
        private readonly uint[] control = new uint[Streams];
        private readonly uint[] count = new uint[Streams];
        private readonly uint[] reload = new uint[Streams];
        private readonly uint[] peripheral = new uint[Streams];
        private readonly uint[] memory = new uint[Streams];
        private readonly uint[] flags = new uint[Streams];
    }
}
