// QUADSPI of STM32F7 with a NOR flash of the N25Q family, whose content is a plain memory.
//
// It knows the commands that simulator/devices/quadspi.py and nor_flash.py know. What the chip would
// ignore is logged as an error, and ignored; how it is read while mapped isn't looked at. The memory
// can be read at any time: that the firmware doesn't while commands are sent is up to its protection
// unit, which Renode has.
using System.Collections.Generic;
using System.Linq;
using Antmicro.Renode.Logging;
using Antmicro.Renode.Peripherals.Bus;
using Antmicro.Renode.Peripherals.Memory;

namespace Antmicro.Renode.Peripherals.Tinyfleet
{
    public class Stm32Quadspi : IDoubleWordPeripheral, IKnownSize
    {
        /// `internalFlash` counts operations and cuts power for both. `id`: what the chip says it is.
        public Stm32Quadspi(MappedMemory memory, Stm32Flash internalFlash, uint id)
        {
            this.memory = memory;
            this.internalFlash = internalFlash;
            chip = new NorFlash(this, memory, internalFlash, id);
            Reset();
        }

        /// The chip has no reset line and goes on.
        public void Reset()
        {
            registers.Clear();
            flags = 0;
            End();
        }

        /// Of the chip; its content stays.
        public void PowerOn()
        {
            chip.PowerOn();
        }

        public uint ReadDoubleWord(long offset)
        {
            if(offset == StatusRegister)
            {
                if(isPolling)
                {
                    Poll();
                }
                return flags | (isPolling || waitsForData || isMapped ? Busy : 0);
            }
            return Register(offset);
        }

        public void WriteDoubleWord(long offset, uint value)
        {
            if(!internalFlash.HasPower)
            {
                return;
            }
            if(offset == ControlRegister)
            {
                if((value & Abort) != 0 || (value & Enabled) == 0)
                {
                    End();
                }
                registers[offset] = value & ~Abort;
            }
            else if(offset == FlagClearRegister)
            {
                flags &= ~value;
            }
            else if(isMapped || isPolling || (Register(ControlRegister) & Enabled) == 0 && IsOfCommands(offset))
            {
                Refuse("register 0x{0:X} written while off, mapped or polling", offset);
            }
            else
            {
                registers[offset] = value;
                Start(offset, value);
            }
        }

        public void Refuse(string why, params object[] of)
        {
            this.Log(LogLevel.Error, why, of);
        }

        public long Size { get { return 0x1000; } }

        private static bool IsOfCommands(long offset)
        {
            return offset == CommandRegister || offset == AddressRegister || offset == DataRegister;
        }

        // Whichever register is the last that a command needs starts it.
        private void Start(long offset, uint value)
        {
            var command = Register(CommandRegister);
            var instruction = (byte)command;
            var hasAddress = Lines(command, 10) != 0;
            var hasData = Lines(command, 24) != 0;
            switch(offset)
            {
            case CommandRegister:
                Begin(command, instruction, hasAddress);
                break;
            case AddressRegister:
                if(!hasAddress || Mode(command) != IndirectWrite)
                {
                    Refuse("an address for command 0x{0:X2}, which takes none", instruction);
                }
                else if(hasData)
                {
                    waitsForData = true;
                }
                else
                {
                    chip.Erase(instruction, value);
                    flags |= TransferComplete;
                }
                break;
            case DataRegister:
                var length = Register(LengthRegister) + 1;
                if(!waitsForData || length > 4)
                {
                    Refuse("{0} bytes of data for command 0x{1:X2}", length, instruction);
                    break;
                }
                waitsForData = false;
                var data = Enumerable.Range(0, (int)length).Select(i => (byte)(value >> 8 * i)).ToArray();
                chip.Program(instruction, Register(AddressRegister), data);
                flags |= TransferComplete;
                break;
            }
        }

        private void Begin(uint command, byte instruction, bool hasAddress)
        {
            waitsForData = false;
            switch(Mode(command))
            {
            case Mapped:
                var size = 2L << (int)(Register(DeviceRegister) >> 16 & 0x1F);
                if(chip.IsBusy || size != memory.Size)
                {
                    Refuse("mapped while the chip is busy, or with {0} bytes of {1}", size, memory.Size);
                    break;
                }
                isMapped = true;
                break;
            case AutomaticPoll:
                isPolling = true;
                break;
            case IndirectWrite:
                if(!hasAddress)
                {
                    chip.Command(instruction);
                    flags |= TransferComplete;
                }
                else if(Lines(command, 10) != 1 || (command >> 12 & 3) != 2)
                {
                    Refuse("the chip takes addresses of 24 bits over one line");
                }
                break;
            default:
                Refuse("indirect reads aren't modelled");
                break;
            }
        }

        private void Poll()
        {
            var answer = chip.Register((byte)Register(CommandRegister), (int)(Register(LengthRegister) % 4) + 1);
            var mask = Register(MaskRegister);
            registers[DataRegister] = answer;
            if(((answer ^ Register(MatchRegister)) & mask) == 0)
            {
                flags |= StatusMatch;
                isPolling = false;
            }
        }

        private void End()
        {
            isPolling = waitsForData = isMapped = false;
        }

        private uint Register(long offset)
        {
            uint value;
            return registers.TryGetValue(offset, out value) ? value : 0;
        }

        private static uint Lines(uint command, int place)
        {
            return command >> place & 3;
        }

        private static uint Mode(uint command)
        {
            return command >> 26 & 3;
        }

        private const long ControlRegister = 0x00;
        private const long DeviceRegister = 0x04;
        private const long StatusRegister = 0x08;
        private const long FlagClearRegister = 0x0C;
        private const long LengthRegister = 0x10;
        private const long CommandRegister = 0x14;
        private const long AddressRegister = 0x18;
        private const long DataRegister = 0x20;
        private const long MaskRegister = 0x24;
        private const long MatchRegister = 0x28;
        private const uint Enabled = 1u << 0;
        private const uint Abort = 1u << 1;
        private const uint TransferComplete = 1u << 1;
        private const uint StatusMatch = 1u << 3;
        private const uint Busy = 1u << 5;
        private const uint IndirectWrite = 0;
        private const uint AutomaticPoll = 2;
        private const uint Mapped = 3;

        private uint flags;
        private bool isPolling, waitsForData, isMapped;
        private readonly MappedMemory memory;
        private readonly Stm32Flash internalFlash;
        private readonly NorFlash chip;
        private readonly Dictionary<long, uint> registers = new Dictionary<long, uint>();
    }

    /// The chip: write enable latch, flag status, and how long it stays busy.
    public class NorFlash
    {
        public NorFlash(Stm32Quadspi controller, MappedMemory memory, Stm32Flash internalFlash, uint id)
        {
            this.controller = controller;
            this.memory = memory;
            this.internalFlash = internalFlash;
            this.id = id;
        }

        public void PowerOn()
        {
            busyPolls = 0;
            isWriteEnabled = isResetEnabled = false;
        }

        public bool IsBusy { get { return busyPolls > 0; } }

        public void Command(byte instruction)
        {
            var resets = isResetEnabled && instruction == ResetMemory;
            isResetEnabled = instruction == ResetEnable;
            if(resets)
            {
                PowerOn();
            }
            else if(!isResetEnabled && !RefusesBusy(instruction))
            {
                isWriteEnabled |= instruction == WriteEnable;
                if(instruction != WriteEnable && instruction != ClearFlagStatus)
                {
                    controller.Refuse("command 0x{0:X2} without address", instruction);
                }
            }
        }

        /// Answer to a command that reads a register, the first byte lowest; the flag status is one poll.
        public uint Register(byte instruction, int size)
        {
            var all = size == 4 ? uint.MaxValue : (1u << 8 * size) - 1;
            switch(instruction)
            {
            case ReadFlagStatus:
                var status = IsBusy ? 0u : 0x80u;
                busyPolls -= IsBusy ? 1 : 0;
                return status * 0x01010101u & all;
            case ReadIdentification:
                // While it is busy it doesn't drive its line.
                return (IsBusy ? uint.MaxValue : id >> 16 | (id & 0xFF00) | (id & 0xFF) << 16 | 0x10u << 24) & all;
            default:
                controller.Refuse("read of a register by command 0x{0:X2}", instruction);
                return all;
            }
        }

        public void Program(byte instruction, uint offset, byte[] data)
        {
            if(instruction != PageProgram || offset % PageBytes + data.Length > PageBytes)
            {
                controller.Refuse("command 0x{0:X2} with {1} bytes at 0x{2:X}", instruction, data.Length, offset);
                return;
            }
            if(!StartsChange(instruction, offset, data.Length))
            {
                return;
            }
            var before = memory.ReadBytes(offset, data.Length);
            var isCut = internalFlash.CountOperation();
            memory.WriteBytes(offset, before.Select((old, i) => (byte)(old & (data[i] | Torn(isCut)))).ToArray());
            End(isCut);
        }

        public void Erase(byte instruction, uint offset)
        {
            int size;
            if(!EraseSizes.TryGetValue(instruction, out size))
            {
                controller.Refuse("command 0x{0:X2} with address and without data", instruction);
                return;
            }
            var start = offset / (uint)size * (uint)size;
            if(!StartsChange(instruction, start, size))
            {
                return;
            }
            var isCut = internalFlash.CountOperation();
            var before = memory.ReadBytes(start, size);
            memory.WriteBytes(start, before.Select(old => (byte)(isCut ? old | Torn(isCut) : 0xFF)).ToArray());
            End(isCut);
        }

        // Bits that a change which was cut left out, or made.
        private byte Torn(bool isCut)
        {
            return isCut ? internalFlash.AnyByte() : (byte)0;
        }

        private void End(bool isCut)
        {
            busyPolls = BusyPolls;
            isWriteEnabled = false;
            if(isCut)
            {
                internalFlash.FailPower();
            }
        }

        private bool StartsChange(byte instruction, uint offset, int size)
        {
            if(RefusesBusy(instruction))
            {
                return false;
            }
            if(!isWriteEnabled || offset + size > memory.Size)
            {
                controller.Refuse("command 0x{0:X2} at 0x{1:X} without write enable, or beyond the chip", instruction, offset);
                return false;
            }
            return true;
        }

        private bool RefusesBusy(byte instruction)
        {
            if(IsBusy)
            {
                controller.Refuse("command 0x{0:X2} while the chip programs or erases", instruction);
            }
            return IsBusy;
        }

        private const int PageBytes = 256;
        private const int BusyPolls = 3;
        private const byte PageProgram = 0x02;
        private const byte WriteEnable = 0x06;
        private const byte ClearFlagStatus = 0x50;
        private const byte ResetEnable = 0x66;
        private const byte ReadFlagStatus = 0x70;
        private const byte ResetMemory = 0x99;
        private const byte ReadIdentification = 0x9F;
        private static readonly Dictionary<byte, int> EraseSizes = new Dictionary<byte, int> { { 0x20, 4096 }, { 0xD8, 65536 } };

        private int busyPolls;
        private bool isWriteEnabled, isResetEnabled;
        private readonly Stm32Quadspi controller;
        private readonly MappedMemory memory;
        private readonly Stm32Flash internalFlash;
        private readonly uint id;
    }
}
