*** Settings ***
Documentation       The shipped firmware on boards in Renode: renode-test tests/renode/fleet.robot
...                 with TINYFLEET_PYTHON, the interpreter of tinyfleet's environment.
Suite Setup         Setup
Suite Teardown      Teardown
Test Setup          Reset Emulation
Test Teardown       Run Keywords    End Site    AND    Test Teardown
Resource            ${RENODEKEYWORDS}
Resource            nodes.resource

*** Test Cases ***
A Board Boots And Waits For Bytes
    Start Site    1    0    stm32f746
    Execute Command    mach set "node-1"
    Execute Command    emulation RunFor "0.5"
    ${before}=    Execute Command    sysbus.cpu ExecutedInstructions
    Execute Command    emulation RunFor "0.5"
    ${after}=    Execute Command    sysbus.cpu ExecutedInstructions
    ${spent}=    Evaluate    int($after, 16) - int($before, 16)
    Should Be True    0 < ${spent} < 10_000_000    it should sleep most of the time

A Node Trains In A Round Beside A Unicorn Device
    Start Site    1    1    stm32f407
    Start Emulation
    ${result}=    Result Of The Round
    Sums Should Be Those Of Unicorn    ${result}    2

A Power Cut While Weights Are Written Costs No Round
    Start Site    1    1    stm32f746
    Execute Command    mach set "node-1"
    Execute Command    flash_controller CutPowerAt 300 1
    Start Emulation
    Wait Until Keyword Succeeds    120s    0.2s    Core Should Be Halted
    Execute Command    flash_controller PowerOn
    Execute Command    sysbus.sram ZeroAll
    Execute Command    machine Reset
    Execute Command    sysbus.cpu IsHalted false
    ${result}=    Result Of The Round
    Should Be Equal As Integers    ${result}[cuts]    1
    Sums Should Be Those Of Unicorn    ${result}    2

A Mixed Fleet Of Four Nodes And Four Unicorn Devices
    Start Site    4    4
    Start Emulation
    ${result}=    Result Of The Round
    Sums Should Be Those Of Unicorn    ${result}    8

*** Keywords ***
Core Should Be Halted
    ${halted}=    Execute Command    sysbus.cpu IsHalted
    Should Contain    ${halted}    True
